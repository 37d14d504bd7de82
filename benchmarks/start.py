"""What stands before the first label: `python benchmarks/start.py`.

Commands from a cold process, beside what they cannot do without; and the text rows of 1,000
classes, computed once and then read from disk.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from measuring import Rows, apart, in_turn, machine, seconds, show, spans

from maskclip.clip.prompts import text_rows
from maskclip.clip.weights import load_clip

TEXT_MODELS = {"emoji": None, "ViT-B-16": "random"}  # names, and weights


def commands(repeats: int) -> Rows:
    """Measure commands from a cold process; the words of `segment` were used before."""
    with tempfile.TemporaryDirectory() as folder:
        # Bytecode is kept, as for any user after the first day, whatever this process was set to.
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{folder}/pyc"}

        def run(arguments: str) -> None:
            command = [sys.executable, *shlex.split(arguments)]
            subprocess.run(command, check=True, capture_output=True, env=env, cwd=folder)

        run("-m maskclip emoji scenes --out . --count 1")
        lines = {
            "python": "-c pass",
            "import torch": "-c 'import torch'",
            "import open_clip": "-c 'import open_clip'",
            "maskclip --help": "-m maskclip --help",
            "maskclip segment": "-m maskclip segment JPEGImages --vocabulary emoji --model emoji "
            "--refine none",
        }
        times = in_turn({name: partial(run, line) for name, line in lines.items()}, repeats)
    return [["command", "seconds"], *([name, spans(values)] for name, values in times.items())]


def texts(repeats: int) -> Rows:
    """Measure text rows when computed, and when read from the cache on disk."""
    rows = [["model", "computed, ms", "from disk, ms"]]
    for model in TEXT_MODELS:
        with tempfile.TemporaryDirectory() as folder:
            first, *later = (
                1e3 * apart(text_seconds, model, Path(folder)) for _ in range(repeats + 1)
            )
        rows.append([model, f"{first:.0f}", spans(later)])
    return rows


def text_seconds(model: str, folder: Path) -> float:
    """Return how long the text rows of 1,000 classes take; to be called in a fresh process."""
    clip, names = load_clip(model, weights=TEXT_MODELS[model]), [f"thing {i}" for i in range(1000)]
    return seconds(lambda: text_rows(clip, names, templates="plain", path=folder / "rows.sqlite"))


def main(arguments: Iterable[str] | None = None) -> None:
    parser = ArgumentParser(description="Measure cold commands, and text rows.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(None if arguments is None else list(arguments))
    show("From a cold process", commands(options.repeats), markdown=options.markdown)
    title = "Text rows of 1,000 classes, one plain template"
    show(title, texts(options.repeats), markdown=options.markdown)
    print(machine())


if __name__ == "__main__":
    main()
