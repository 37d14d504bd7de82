"""What README and docs show works: every command is one, and every block runs or says why not.

A block of commands or of Python that needs more than this machine has is marked in the line before
it: `<!-- needs: the weights of CLIP -->`; and a line that names ~/data needs the data set in it.
All others run here, in a folder of drawn photos; where that would take minutes, on fewer images and
for fewer steps. The blocks of a guide run one after the other, each on what those before it wrote.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from PIL import Image

from maskclip.cli import app, main
from maskclip.core.config import ModelConfig
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.corrections import ACCEPTED, CorrectionJournal, Corrections
from maskclip.emoji.scenes import EmojiScenes, draw_scene
from maskclip.tasks.evaluation.evaluate import describe
from maskclip.tasks.evaluation.predictors import load_predictor
from maskclip.tasks.evaluation.settings import Evaluation, Run

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
BLOCK = re.compile(
    r"(?:^<!-- needs: (?P<needs>[^\n]+) -->\n+)?^```(?P<kind>sh|python)\n(?P<text>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
RUNNERS = re.compile(r"^(?:[A-Z_]+=\S+ )?(?:torchrun .*?-m |python -m )?maskclip ")
FILE = re.compile(r"^<!-- file: (\S+) -->\n+```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
COLUMNS = 88
ADDRESS = re.compile(r"(?:wget)?\s*https?://\S+$")  # which no shell takes in two pieces
EXAMPLE = re.compile(r"python (?=examples/)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`maskclip ([^`]+)`")
ELSEWHERE = re.compile(r"make |pip install |\.venv/bin/")  # what `make test` and `make dist` run
FEWER = {
    "eval": ("--limit", "1"),
    "compare": ("--limit", "1", "--methods", "clean", "--refine", "none"),
    "reproduce": ("--limit", "1"),
    "emoji": ("--count", "3"),
    "train": ("--steps", "2", "--batch-size", "2"),
}

GUIDES = [ROOT / "docs" / name for name in ("label-and-correct.md", "own-network.md")]
CORRECTED = (
    "corrected photos"  # which a guide has, from people: all that it labelled is accepted here
)


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
    """Yield the commands of a block, those over several lines in one."""
    joined = re.sub(r"\\\n\s*", " ", block.text).splitlines()
    yield from (line for line in joined if line and not line.startswith("#"))


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


@pytest.mark.parametrize("block", of_all_documents("sh"))
def test_commands_are_seen_whole(block):
    """A page shows some 88 columns, and the button that copies lies on what is longer."""
    long = [line for line in block.text.splitlines() if len(line) > COLUMNS]
    assert [line for line in long if not ADDRESS.match(line)] == []


PAGES = [path for path in DOCUMENTS if path.name != "README.md"]
PAGES += [ROOT / "benchmarks" / "README.md", ROOT / "tests" / "golden" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_page_begins_with_what_it_is_good_for(page):
    """A short paragraph comes first: no command, table or list of which one knows not yet why."""
    title, first, _ = page.read_text().split("\n\n", 2)
    assert title.startswith("# ")
    assert first[0].isalpha(), first
    assert len(first.splitlines()) <= 3, first


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_fetch_nothing_from_elsewhere(page):
    """The site's own script would fetch what draws Mermaid's pictures, and pictures by address."""
    text = page.read_text()
    assert "```mermaid" not in text
    assert not re.search(r"!\[[^\]]*\]\(https?:|<(?:img|script|iframe)\b[^>]*https?:", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_sentences_have_verbs_and_options_that_exist(document):
    for found in INLINE.finditer(FENCED.sub("", document.read_text())):
        given, verb = shlex.split(found[1]), typer.main.get_command(app)
        while given and hasattr(verb, "commands"):
            assert given[0] == "..." or given[0] in verb.commands, found[0]
            verb = verb.commands.get(given.pop(0))
        options = {name for each in getattr(verb, "params", ()) for name in each.opts} | {
            "-",
            "--help",
        }
        used = {word.partition("=")[0] for word in given if word.startswith("-")}
        assert verb is None or used <= options, found[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_of_the_package_that_are_named_exist(document):
    named = re.findall(
        r"`((?:core|clip|data|plus|tasks|cli|web|export|tests)/[\w/]*(?:\.py)?)`",
        document.read_text(),
    )
    homes = (ROOT, ROOT / "src" / "maskclip")
    assert [name for name in named if not any((home / name).exists() for home in homes)] == []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that the documents speak of: a photo, folders of some, the files they show."""
    some = [*(f"photos/{index}.jpg" for index in range(3)), "few/0.jpg"]
    for name in ("photo.jpg", "a.jpg", "b.jpg", *some):
        draw(tmp_path / name)
    for name in ("classes.txt", "seen.txt"):
        (tmp_path / name).write_text("dog\ngrass\nsky\n")
    for document in DOCUMENTS:
        for name, text in FILE.findall(document.read_text()):
            (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw(path):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(draw_scene(7, size=(96, 128)).image).save(path)


def run(block, capsys):
    """Run what is a command of maskclip, or one of our examples; all others are looked at."""
    for line in lines(block):
        if "~/data" in line or ELSEWHERE.match(line):
            continue
        if EXAMPLE.match(line):
            script, *given = shlex.split(EXAMPLE.sub("", line), comments=True)
            subprocess.run([sys.executable, ROOT / script, *given], check=True)
            continue
        given = arguments(line)
        assert given is not None, f"not a command of maskclip: {line}"
        code = main([*given, *FEWER.get(given[0], ())])
        assert code == 0, f"{line}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("block", of_all_documents("sh"))
def test_every_block_of_commands_runs_or_says_what_it_needs(block, folder, capsys):
    if block.document in GUIDES:
        pytest.skip("runs with the blocks before it")
    if block.needs is not None:
        pytest.skip(f"needs {block.needs}")
    run(block, capsys)


@pytest.mark.parametrize("document", GUIDES, ids=lambda path: path.name)
def test_the_blocks_of_a_guide_run_one_after_the_other(document, folder, capsys):
    for index in range(3, 10):  # as many as tune wants
        draw(folder / f"photos/{index}.jpg")
    for block in blocks(document):
        if block.needs == CORRECTED:
            correct(folder, block)
        if block.kind == "sh" and block.needs in (None, CORRECTED):
            run(block, capsys)


def correct(folder, block):
    """Do what people do: accept what was labelled, and paint masks, also of photos put aside."""
    labels = folder / "labels"
    if Corrections.are_in(labels):
        return
    classes = re.search(r"--classes (\S+)", block.text)
    words = Vocabulary.from_file(classes[1] if classes else "animals.toml")
    with CorrectionJournal(labels, words) as journal:
        for path in (labels / "png").glob("*.png"):
            journal.mark(path.stem, ACCEPTED)
    for name, copied in (
        ("test", "photos"),
        ("painted", "labels/png"),
        ("test-masks", "labels/png"),
    ):
        shutil.copytree(folder / copied, folder / name)


def test_a_result_holds_what_the_page_on_measuring_says():
    page = (ROOT / "docs" / "evaluate.md").read_text()
    checklist = page.partition("## Report a figure")[2].partition("Three ways")[0]
    named = {word for word in re.findall(r"`(\w+)`", checklist) if "_" in word or word.islower()}
    model = ModelConfig(name="emoji-vit", templates="plain")
    evaluation = Evaluation(dataset="emoji", model=model, protocol="windows")
    scenes = EmojiScenes()
    found = describe(load_predictor(evaluation, scenes, device="cpu"), scenes, Run(limit=1))
    assert named - {"windows", "tokenizer"} <= found.keys()  # CLIP's own tokenizer is not named


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_of_python_runs_or_says_what_it_needs(document, folder):
    known = {}
    for block in blocks(document):
        if block.kind == "python" and block.needs is None:
            exec(compile(block.text, f"{document}:{block.line}", "exec"), known)
