"""The command line, and the only place that prints: a file a verb; heavy imports wait for it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from maskclip.cli import convert, data, evaluate, label, lists, segment, train
from maskclip.cli.console import error_line, warning_line
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning

app = typer.Typer(
    name="maskclip",
    help="Free dense labels from CLIP: words and images in, a label for every pixel out.",
    epilog="Try it offline: maskclip emoji scenes --out scenes --count 4, then "
    "maskclip segment scenes/JPEGImages --vocabulary emoji --model emoji",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"maskclip {version('maskclip')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    pass


app.command("segment")(segment.segment)
app.command("label")(label.label)
app.command("eval")(evaluate.evaluate)
app.command("train")(train.train)
app.command("convert")(convert.convert)
app.command("recipes")(lists.recipes)
app.command("models")(lists.models)
app.command("vocabularies")(lists.vocabularies)
app.command("doctor")(lists.doctor)
app.add_typer(data.app, name="data")
app.add_typer(data.emoji_app, name="emoji")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 1: some images failed, the rest are done. 2: the command or its input cannot be used.
    130: interrupted. `MASKCLIP_DEBUG=1` shows the traceback of an error.
    """

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
            error_line(_message(error))
            return 2
    return 0


def _message(error: Exception) -> str:
    """Return the line to print: of an error of files, without its number."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
