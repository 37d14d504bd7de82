"""What strangers wrote is shown, not obeyed; whatever goes wrong is one line."""

import ast
import io
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from maskclip import cli
from maskclip.cli import console, main
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning

HOSTILE = "a\x1b[2J\x9b31m\u202egpj\n[bold]b[/] :dog: caf\udce9"
SHOWN = r"a\x1b[2J\x9b31m\u202egpj\n[bold]b[/] :dog: caf\udce9"
SHOWN_IN_ERRORS = SHOWN.replace(r"\n", " ")


def test_lines_tables_and_paths_show_what_a_terminal_would_obey(capsys):
    console.print_line(HOSTILE, style="bold")
    console.print_path(HOSTILE)
    console.print_table("what", "[red]", rows=[(HOSTILE, "1")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [SHOWN, f"-> {SHOWN}", *lines[2:3], f"{SHOWN}  1"]
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    ("width", "head", "left_out"),
    [
        (31, "name size kind figure", ""),
        (30, "name kind figure", "size"),
        (25, "name kind figure", "size"),
        (24, "name figure", "size, kind"),
        (18, "name figure", "size, kind"),  # with one space between them
    ],
)
def test_narrow_terminals_go_without_spare_columns(width, head, left_out, monkeypatch, capsys):
    def screen(*, errors=False):
        return Console(file=sys.stdout, width=width, force_terminal=True, color_system=None)

    monkeypatch.setattr(console, "console", screen)
    columns, rows = ("name", "size", "kind", "figure"), [("a-long-name", "1", "b", "12.5")]
    console.print_table(*columns, rows=rows, spare=("no such", "size", "kind"))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].split() == head.split()
    assert lines[1].startswith("a-long-name ")
    said = f"Left out, as the terminal is narrow: {left_out}. A pipe has all."
    assert lines[2:] == ([said] if left_out else [])


def test_errors_and_warnings_are_one_harmless_line(capsys):
    console.error_line(HOSTILE)
    console.warning_line(HOSTILE)
    printed = capsys.readouterr().err.splitlines()
    assert printed == [f"error: {SHOWN_IN_ERRORS}", f"warning: {SHOWN_IN_ERRORS}"]


def test_very_long_errors_are_cut_in_the_middle(capsys):
    console.error_line("first " + "x" * 100_000 + " last")
    line = capsys.readouterr().err
    assert len(line) < 3_000
    assert line.startswith("error: first")
    assert line.endswith("last\n")


@pytest.mark.parametrize(
    "sign", [("JPY_PARENT_PID", "1"), ("MPLBACKEND", "module://matplotlib_inline.backend_inline")]
)
def test_cells_of_notebooks_get_plain_lines(monkeypatch, capsys, sign):
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as notebooks do
    monkeypatch.setenv(*sign)
    with console.working("loading"):
        pass
    assert list(console.track([1, 2], what="segmenting", total=2)) == [1, 2]
    with console.progress_bar() as bar:
        bar.add_task("training")
    console.error_line("no such file")
    console.print_table("class", "share", rows=[("dog", "1 %")])
    printed = capsys.readouterr()
    assert printed.err == "error: no such file\n"
    assert printed.out == "class  share\ndog    1 %\n"


def test_terminals_are_shown_the_same(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with console.working(HOSTILE) as progress:
        progress(HOSTILE)
    assert list(console.track([1, 2], what=HOSTILE, total=2)) == [1, 2]
    console.error_line(HOSTILE)
    printed = capsys.readouterr().err
    assert "\x1b[2J" not in printed
    assert "\u202e" not in printed
    assert "\x9b" not in printed
    assert "[bold]" in printed


def test_what_takes_long_is_reported_in_one_line_where_there_is_no_terminal(monkeypatch, capsys):
    class Now(threading.Thread):
        """A timer that has run out already."""

        def __init__(self, seconds, function, arguments, keywords):
            assert seconds > 0
            super().__init__(target=function, args=arguments, kwargs=keywords)

        def cancel(self):
            self.join()

    with console.working("loading a model"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console.threading, "Timer", Now)
    with console.working("loading a model"):
        pass
    assert capsys.readouterr().err == "loading a model ...\n"


def test_how_far_it_is_is_printed_from_time_to_time_where_there_is_no_terminal(monkeypatch, capsys):
    now = iter([0.0, 29.0, *[30.0] * 2, 59.0, *[61.0] * 2])
    with monkeypatch.context() as patched:
        patched.setattr(console.time, "monotonic", lambda: next(now))
        patched.setattr(console, "_PATIENCE", 1000.0)
        patched.setattr(console.threading.Timer, "start", lambda _: None)
        with console.working("encoding") as progress:
            for done in (1, 2, 3, 4):
                progress(f"{done} of 4 words")
    assert capsys.readouterr().err == "2 of 4 words\n4 of 4 words\n"


def test_only_the_console_prints():
    """A verb that prints by itself would show strangers' words as they are."""
    folder = Path(cli.__file__).parent
    for path in folder.glob("*.py"):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                assert name not in ("print", "secho", "write", "Console"), f"{path}:{node.lineno}"
                assert name != "echo" or "version" in ast.unparse(node), f"{path}:{node.lineno}"


@pytest.fixture
def verb(monkeypatch):
    """`verb(action)`: make `maskclip doctor` do something else."""

    def replace(action):
        monkeypatch.setattr("maskclip.cli.console.print_table", lambda *_, **__: action())

    return replace


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MaskCLIPError(HOSTILE), f"error: {SHOWN_IN_ERRORS}"),
        (FileNotFoundError(2, "No such file", HOSTILE), f"error: {SHOWN_IN_ERRORS}: No such file"),
        (EOFError("Ran out of input"), "error: a file ends too early (Ran out of input)"),
        (EOFError(), "error: a file ends too early (it is empty or was cut short)"),
    ],
)
def test_errors_of_files_are_one_line(verb, capsys, error, line):
    def fail():
        raise error

    verb(fail)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err.strip() == line


@pytest.mark.parametrize(
    ("error", "code", "begins"),
    [
        (MemoryError(), 2, "error: memory ran out: "),
        (
            TypeError("x\ny"),
            1,
            "error: this is a bug of maskclip: TypeError: x y (MASKCLIP_DEBUG=1 ",
        ),
        (KeyError(), 1, "error: this is a bug of maskclip: KeyError (MASKCLIP_DEBUG=1 "),
    ],
)
def test_any_other_error_is_one_line_too(verb, capsys, monkeypatch, error, code, begins):
    def fail():
        raise error

    verb(fail)
    monkeypatch.delenv("MASKCLIP_DEBUG", raising=False)
    assert main(["doctor"]) == code
    printed = capsys.readouterr().err
    assert printed.startswith(begins)
    assert printed.count("\n") == 1
    monkeypatch.setenv("MASKCLIP_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["doctor"])


@pytest.mark.skipif(os.name == "nt", reason="a shell of Unix closes streams")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_error(closed):
    command = f'"{sys.executable}" -m maskclip methods {closed}'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_that_cannot_be_written_is_named():
    command = f'"{sys.executable}" -m maskclip methods > /dev/full'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output or a file cannot be read or written: ")
    assert "Traceback" not in done.stderr


def test_warnings_are_harmless_too(verb, capsys):
    verb(lambda: warnings.warn(HOSTILE, MaskCLIPWarning, stacklevel=1))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().err == f"warning: {SHOWN_IN_ERRORS}\n"


def test_an_interrupt_has_its_own_exit_code(verb, capsys):
    def interrupt():
        raise KeyboardInterrupt

    verb(interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_verb_that_is_stopped_says_once_how_it_goes_on(verb, capsys):
    def interrupt():
        console.say_how_to_resume("run it again")
        raise KeyboardInterrupt

    verb(interrupt)
    for _ in range(2):
        assert main(["doctor"]) == 130
        assert capsys.readouterr().err == "stopped: run it again\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment"], "Missing argument 'IMAGE' (see `maskclip segment --help`)"),
        (["segmnt"], "Did you mean 'segment'"),
        (["segment", "a.jpg", "--clases", "b"], "--classes"),
        (["segment", "a.jpg", "--max-pixels", "0"], "--max-pixels"),
        (["vocabularies", "voc21", "\x1b[2J"], r"(\x1b[2J)"),
    ],
)
def test_usage_errors_are_one_harmless_line(capsys, arguments, message):
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert message in printed


def test_a_terminal_without_the_letters_of_a_word_gets_escapes():
    code = "from maskclip.cli.console import print_line; from maskclip.cli import main; "
    code += "main(['--version']); print_line('日本')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert rb"\u65e5\u672c" in done.stdout


def test_a_stream_of_another_kind_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert main(["--version"]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_photos_of_hostile_names_are_labelled_and_shown_harmlessly(tmp_path, capsys):
    folder, out = tmp_path / "photos", str(tmp_path / "out")
    folder.mkdir()
    names = ["a\x1b[2J\u202egpj.png", "b[red]:dog:\n.png", "c\udce9.png"]
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / "sound.png")
        (folder / "sound.png").rename(folder / name)
    (folder / "d\x9b31m.png").write_text("no image")
    words = ["-c", "dog", "-c", "cat", "--model", "emoji", "--templates", "plain"]
    assert main(["segment", str(folder), *words, "--out", out]) == 1
    printed = "".join(capsys.readouterr())
    for character in "\x1b\u202e\udce9\x9b":
        assert character not in printed
    for shown in (r"a\x1b[2J\u202egpj.png", r"b[red]:dog:\n.png", r"c\udce9.png", r"d\x9b31m.png"):
        assert shown in printed
    assert len(list(Path(out).glob("*_labels.png"))) == 3


def test_how_far_a_loop_is_is_said_where_there_is_no_terminal(monkeypatch, capsys):
    times = iter(range(0, 1000, 10))  # seconds: each look at the clock is ten later
    monkeypatch.setattr(console.time, "monotonic", lambda: next(times))
    assert list(console.track(range(7), what="images", total=7)) == list(range(7))
    assert capsys.readouterr().err == "images: 3 of 7\nimages: 6 of 7\n"
