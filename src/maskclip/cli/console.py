"""What all verbs print with: tables, progress, one-line errors."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO, TypeVar

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from maskclip.core.text import printable

Item = TypeVar("Item")

_OPTIONS: ContextVar[Mapping[str, str]] = ContextVar("_OPTIONS", default={})  # noqa: B039 (a constant)
_RESUMED: ContextVar[str] = ContextVar("_RESUMED", default="")
_ARGUMENT = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")
_SETTING = re.compile(r"\b([a-z]+(?:_[a-z]+)*(?:\.[a-z]+(?:_[a-z]+)*)+)(?=: \S.* there, )")
_SETTINGS = {  # where a setting is not called like the option that decides it
    "vocabulary.threshold": "background",
    "teacher.name": "model",
    "cleaning.by_class": "class_confidence",
    **{f"vocabulary.{part}": "classes" for part in ("names", "prompts", "colors")},
}

_PIPED_WIDTH = 10_000  # a pipe has no width: nothing is cut or wrapped for it
_GAP = 2  # columns of a terminal between those of a table
_PATIENCE = 10.0  # seconds without a word, where there is no terminal
_BETWEEN = 30.0  # seconds between lines that say how far something is, there
_LONGEST = 2_000  # characters of an error or warning; more tell nobody more


def console(*, errors: bool = False) -> Console:
    """Return a console on standard output or standard error.

    What strangers wrote is printed by the functions below alone, which show it harmlessly.
    """
    stream = sys.stderr if errors else sys.stdout
    width = None if is_terminal(stream) else _PIPED_WIDTH
    forced = False if _in_notebook() else None
    return Console(file=stream, width=width, force_terminal=forced, highlight=False, emoji=False)


def is_terminal(stream: TextIO) -> bool:
    """Return whether lines can be drawn anew: on a terminal, but not in a cell of a notebook."""
    return stream.isatty() and not _in_notebook()


def _in_notebook() -> bool:
    """Return whether a cell of a notebook runs the command: it pretends to be a terminal."""
    inline = "backend_inline" in os.environ.get("MPLBACKEND", "")
    return inline or "JPY_PARENT_PID" in os.environ


def print_line(text: str = "", *, style: str = "", errors: bool = False) -> None:
    """Print one line as it is, on standard output or standard error: nothing in it is obeyed."""
    line = Text(printable(text), style=style)
    console(errors=errors).print(line, soft_wrap=True)


def print_choice(chosen: object, why: str, *, what: str = "method") -> None:
    """Say on standard error what `--method auto` is here, and why; nothing where it was named.

    `what` is another option than the method.
    """
    if why:
        print_line(f"{what} auto: {getattr(chosen, 'name', chosen)}, {why}", errors=True)


def print_path(path: object) -> None:
    """Print the path of a file that was written."""
    print_line(f"-> {path}", style="dim")


@contextmanager
def speaking_of(options: Mapping[str, str]) -> Iterator[None]:
    """Let errors and warnings name options while the block runs, where messages name arguments.

    Messages of the Python interface write `weights=FILE`; a verb's user reads --weights FILE.

    Args:
        options: argument, or argument and value (`weights=FILE`) -> option.
    """
    token = _OPTIONS.set(options)
    try:
        yield
    finally:
        _OPTIONS.reset(token)


def as_options(message: str) -> str:
    """Return a message that names the options of the verb where it names arguments."""
    options = _OPTIONS.get()

    def option(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if f"{name}={value}" in options:
            return options[f"{name}={value}"]
        if name not in options:
            return found[0]
        return options[name] if value in (None, "True") else f"{options[name]} {value}"

    def of_setting(found: re.Match[str]) -> str:
        name = _SETTINGS.get(found[1], found[1].rpartition(".")[2])
        return options.get(name, found[0])

    return _SETTING.sub(of_setting, _ARGUMENT.sub(option, message))


def say_how_to_resume(how: str) -> None:
    """Let the line of a verb that is stopped by Ctrl-C end with how it goes on."""
    _RESUMED.set(how)


def print_stopped() -> None:
    """Print one line on standard error about a verb that was stopped by Ctrl-C: no error."""
    how = _RESUMED.get()
    _RESUMED.set("")  # of the next verb in this process nothing is known
    print_line(f"stopped: {how}" if how else "stopped", errors=True)


def note_line(message: str) -> None:
    """Print one line of a task on standard output, which names the options of the verb."""
    print_line(as_options(message))


def error_line(message: str) -> None:
    """Print one line that begins with `error:` on standard error."""
    _line("error", "red", message)


def warning_line(message: str) -> None:
    """Print one line that begins with `warning:` on standard error."""
    _line("warning", "yellow", message)


def _line(kind: str, style: str, message: str) -> None:
    text = printable(" ".join(message.split()))
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 300]} ... {text[-300:]}"
    text = as_options(text)
    console(errors=True).print(Text.assemble((f"{kind}:", style), " ", text), soft_wrap=True)


def print_table(
    *columns: str,
    rows: Iterable[Sequence[str]],
    right: Sequence[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Print a table on standard output; a line under it says which columns a terminal lacks.

    Args:
        columns: their heads.
        rows: a cell a column.
        right: columns that are aligned right.
        spare: columns that a terminal which is too narrow for all of them goes without, the first
            of these first. A pipe has all.
    """
    screen = console()
    cells = [[printable(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    shown = list(range(len(columns)))
    gap, left_out = _GAP, []
    for name in (each for each in spare if each in columns and screen.is_terminal):
        if _width(shown, widths, gap) <= screen.width:
            break
        shown.remove(columns.index(name))
        left_out.append(name)
    if left_out and _width(shown, widths, gap) > screen.width:
        gap = 1  # rather than names in two lines
    grid = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for index in shown:
        justify: JustifyMethod = "right" if columns[index] in right else "left"
        grid.add_column(columns[index], justify=justify, overflow="fold")
    for row in cells[1:]:
        grid.add_row(*(Text(row[index]) for index in shown))
    if screen.is_terminal:
        screen.print(grid)
        if left_out:
            print_line(
                f"Left out, as the terminal is narrow: {', '.join(left_out)}. A pipe has all."
            )
        return
    with screen.capture() as captured:
        screen.print(grid)
    for line in captured.get().splitlines():
        screen.file.write(f"{line.rstrip()}\n")  # cells are padded, which a pipe has no use for


def _width(shown: Sequence[int], widths: Sequence[int], gap: int) -> int:
    return sum(widths[index] for index in shown) + gap * (len(shown) - 1)


def print_json(content: object) -> None:
    """Print JSON on standard output, for programs; it is ASCII, so nothing in it is obeyed."""
    console().file.write(f"{json.dumps(content, indent=2)}\n")


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Say on standard error what takes its time while the block runs.

    Yields what shows, in its place, how far it is. Where there is no terminal, there is one line
    once the block has run for some seconds, then one from time to time of how far it is.
    """
    if not is_terminal(sys.stderr):
        timer = threading.Timer(_PATIENCE, print_line, [f"{what} ..."], {"errors": True})
        timer.daemon = True
        timer.start()
        try:
            yield _line_printer()
        finally:
            timer.cancel()
        return
    with console(errors=True).status(Text(printable(what))) as status:
        yield lambda text: status.update(Text(printable(text)))


def _line_printer() -> Callable[[str], None]:
    """Return what prints a line on standard error, if the last one was some time ago."""
    printed = time.monotonic()

    def tell(text: str) -> None:
        nonlocal printed
        if time.monotonic() - printed >= _BETWEEN:
            printed = time.monotonic()
            print_line(text, errors=True)

    return tell


def track(items: Iterable[Item], *, what: str, total: int) -> Iterator[Item]:
    """Pass items on, with a progress bar on standard error; where that is no terminal, by lines."""
    if is_terminal(sys.stderr):
        with progress_bar() as bar:
            yield from bar.track(items, total=total, description=printable(what))
        return
    tell = _line_printer()
    for done, item in enumerate(items, start=1):
        yield item
        tell(f"{what}: {done:,} of {total:,}")


def progress_bar(*columns: ProgressColumn) -> Progress:
    """Return a bar with times, for standard error; it shows nothing where that is no terminal.

    `columns` come between the count and the times.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        *columns,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console(errors=True),
        transient=True,
        disable=not is_terminal(sys.stderr),
    )
