"""What README and docs show works: every command is one, and every block runs or says why not.

A block of commands or of Python that needs more than this machine has is marked in the line before
it: `<!-- needs: the weights of CLIP -->`; and a line that names ~/data needs the data set in it.
All others run here, in a folder of drawn photos; where that would take minutes, on fewer images and
for fewer steps.
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from PIL import Image

from maskclip.cli import app, main
from maskclip.emoji.scenes import draw_scene

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
BLOCK = re.compile(
    r"(?:^<!-- needs: (?P<needs>.+) -->\n+)?^```(?P<kind>sh|python)\n(?P<text>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
RUNNERS = re.compile(r"^(?:[A-Z_]+=\S+ )?(?:torchrun .*?-m |python -m )?maskclip ")
ELSEWHERE = re.compile(r"make |pip install |\.venv/bin/")  # what `make test` and `make dist` run
FEWER = {
    "eval": ("--limit", "1"),
    "compare": ("--limit", "1", "--methods", "clean", "--refine", "none"),
    "reproduce": ("--limit", "1"),
    "emoji": ("--count", "3"),
    "train": ("--steps", "2", "--batch-size", "2"),
}


class Block(NamedTuple):
    """A fenced block of a document: what is in it, from which line on, and what it needs."""

    document: Path
    line: int
    kind: str
    text: str
    needs: str | None


def blocks(document):
    text = document.read_text()
    return [
        Block(
            document,
            text[: found.start("kind")].count("\n") + 1,
            *found.group("kind", "text", "needs"),
        )
        for found in BLOCK.finditer(text)
    ]


def of_all_documents(kind):
    found = [block for document in DOCUMENTS for block in blocks(document) if block.kind == kind]
    return [pytest.param(block, id=f"{block.document.name}:{block.line}") for block in found]


def lines(block):
    """Yield the commands of a block, comments and all, those over several lines in one."""
    yield from filter(None, re.sub(r"\\\n\s*", " ", block.text).splitlines())


def arguments(command):
    """Return what a line gives to maskclip, or None for lines of other commands."""
    runner = RUNNERS.match(command)
    return None if runner is None else shlex.split(command[runner.end() :], comments=True)


def context(given):
    """Return Click's context of arguments; one that no verb has is an error."""
    command = typer.main.get_command(app)
    name, inside = "maskclip", None
    while True:
        inside = command.make_context(name, list(given), parent=inside)
        rest = [*inside._protected_args, *inside.args]
        if not hasattr(command, "commands"):
            return inside
        name, command, given = command.resolve_command(inside, rest)


@pytest.mark.parametrize("block", of_all_documents("sh"))
def test_every_command_is_one(block):
    for line in lines(block):
        given = arguments(line)
        if given is not None:
            assert context(given) is not None, line


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that the documents speak of: a photo, a folder of some, words in a file."""
    for name in ("photo.jpg", "a.jpg", "b.jpg", *(f"photos/{index}.jpg" for index in range(3))):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draw_scene(7, size=(96, 128)).image).save(path)
    for name in ("classes.txt", "seen.txt"):
        (tmp_path / name).write_text("dog\ngrass\nsky\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", of_all_documents("sh"))
def test_every_block_of_commands_runs_or_says_what_it_needs(block, folder, capsys):
    if block.needs is not None:
        pytest.skip(f"needs {block.needs}")
    for line in lines(block):
        if "~/data" in line or ELSEWHERE.match(line):
            continue
        given = arguments(line)
        assert given is not None, f"not a command of maskclip: {line}"
        code = main([*given, *FEWER.get(given[0], ())])
        assert code == 0, f"{line}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_of_python_runs_or_says_what_it_needs(document, folder):
    known = {}
    for block in blocks(document):
        if block.kind == "python" and block.needs is None:
            exec(compile(block.text, f"{document}:{block.line}", "exec"), known)
