"""The command line, and the only place that prints: a file a verb; heavy imports wait for it."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from maskclip.cli import (
    compare,
    convert,
    data,
    download,
    evaluate,
    export,
    label,
    lists,
    models,
    reproduce,
    segment,
    serve,
    train,
    tune,
)
from maskclip.cli.console import error_line, print_stopped, speaking_of, warning_line
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # Click's, or that of Typer's copy

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
app.command("compare")(compare.compare)
app.command("reproduce")(reproduce.reproduce)
app.command("train")(train.train)
app.command("serve")(serve.serve)
app.command("tune")(tune.tune)
app.command("convert")(convert.convert)
app.command("export")(export.export)
app.command("recipes")(lists.recipes)
app.command("models")(models.models)
app.command("download")(download.download)
app.command("methods")(lists.methods)
app.command("vocabularies")(lists.vocabularies)
app.command("doctor")(lists.doctor)
app.add_typer(data.app, name="data")
app.add_typer(data.emoji_app, name="emoji")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 1: some images failed, the rest are done; or a bug of maskclip. 2: the command or its
    input cannot be used. 130: stopped. `MASKCLIP_DEBUG=1` shows the traceback of an error.
    """

    def show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
        text = str(message)
        if issubclass(category, MaskCLIPWarning) and text not in shown:  # not again for each photo
            shown.add(text)
            warning_line(text)

    shown: set[str] = set()
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # some terminals lack some words' letters
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries: nothing a user of the command can act on
        warnings.simplefilter("always", MaskCLIPWarning)
        warnings.showwarning = show_warning  # type: ignore[assignment]  # fewer names, same call
        given = list(sys.argv[1:] if arguments is None else arguments)
        with speaking_of(_options_of(given)):
            return _run_safely(given)


def _open_closed_streams() -> None:
    """Let standard output and error lead nowhere where the shell has closed them (`>&-`)."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def _options_of(arguments: Sequence[str]) -> dict[str, str]:
    """Return the options of the verb that is called, by the arguments that they stand for."""
    command: Any = typer.main.get_command(app)
    for argument in arguments:
        if argument not in getattr(command, "commands", {}):
            break
        command = command.commands[argument]
    named = {each.name: max(each.opts, key=len) for each in command.params}
    options = {name: option for name, option in named.items() if option.startswith("--")}
    for name in ("model", "method"):  # where a verb takes several
        if f"{name}s" in options:
            options.setdefault(name, options[f"{name}s"])
    for each in command.params:
        if each.metavar in ("MODEL=FILE", "MODEL=DIR"):  # where a verb takes several models
            value = each.metavar.partition("=")[2]
            options[f"{each.name}={value}"] = f"{options[each.name]} {each.metavar}"
    return options


def _run_safely(arguments: list[str]) -> int:
    """Run a verb and return its exit code; any error is one line."""
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print_stopped()
        return 130
    except Exception as error:
        if os.environ.get("MASKCLIP_DEBUG"):
            raise
        error_line(_message(error))
        return 2 if isinstance(error, MaskCLIPError | OSError) or _lacks_memory(error) else 1
    return code


def _lacks_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from maskclip.core.device import is_out_of_memory

    return is_out_of_memory(error)


def _run(arguments: list[str]) -> int:
    """Run a verb and return its exit code; usage errors are one line, like all others."""
    try:
        code = app(args=arguments, prog_name="maskclip", standalone_mode=False)
    except typer.Abort as end:  # what the parser makes of an end of input
        if os.environ.get("MASKCLIP_DEBUG"):
            raise
        cause = end.__cause__ or end.__context__
        if not isinstance(cause, EOFError):
            raise KeyboardInterrupt from None
        error_line(f"a file ends too early ({str(cause) or 'it is empty or was cut short'})")
        return 2
    except SystemExit as end:
        code = end.code
    except _UsageError as error:
        if type(error).__name__ != "NoArgsIsHelpError":  # that one has printed the help
            error_line(_usage(error))
        return 2
    if code == 130:  # how the parser ends what the keyboard interrupts
        raise KeyboardInterrupt
    return code if isinstance(code, int) else int(code is not None)


def _usage(error: Any) -> str:
    """Return the line to print of a command that the parser refuses."""
    verb = "maskclip" if error.ctx is None else error.ctx.command_path
    return f"{error.format_message().rstrip('.')} (see `{verb} --help`)"


def _message(error: Exception) -> str:
    """Return the line to print: of an error of files, without its number."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.strerror:  # as where output goes to a full disk
        return f"standard output or a file cannot be read or written: {error.strerror}"
    if isinstance(error, MaskCLIPError | OSError):
        return str(error)
    if _lacks_memory(error):
        return (
            "memory ran out: take smaller images or batches, fewer classes or worker processes, "
            "or a machine with more memory"
        )
    kind, text = type(error).__name__, str(error)
    return (
        f"this is a bug of maskclip: {kind}{': ' * bool(text)}{text} "
        "(MASKCLIP_DEBUG=1 shows the traceback, which a report of it needs)"
    )
