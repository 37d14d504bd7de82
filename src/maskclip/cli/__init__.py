"""The command line: the only place that prints. A file a verb; heavy imports wait for the verb."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 1: some images failed, the rest are done. 2: the command or its input cannot be used.
    130: interrupted. `MASKCLIP_DEBUG=1` shows the traceback of an error.
    """
    from maskclip.cli.app import app
    from maskclip.cli.console import error_line, warning_line

    def show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
        if issubclass(category, MaskCLIPWarning):
            warning_line(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries: nothing a user of the command can act on
        warnings.simplefilter("always", MaskCLIPWarning)
        warnings.showwarning = show_warning  # type: ignore[assignment]  # fewer names, same call
        try:
            app(args=list(sys.argv[1:] if arguments is None else arguments), prog_name="maskclip")
        except SystemExit as end:
            if end.code == 130:  # how the parser ends what the keyboard interrupts
                error_line("interrupted")
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except KeyboardInterrupt:
            error_line("interrupted")
            return 130
        except (MaskCLIPError, OSError) as error:
            if os.environ.get("MASKCLIP_DEBUG"):
                raise
            error_line(_told(error))
            return 2
    return 0


def _told(error: Exception) -> str:
    """Return an error in words: of one of files, without its number."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
