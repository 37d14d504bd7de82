"""Is it slower than another checkout? `python benchmarks/against.py ../before`.

The commands of users, as whole processes, in turn in this checkout and in the other: processor
time, on one thread, of each turn beside that of the other checkout's.
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

from measuring import Rows, in_turn, machine, ratios, show, spans

HERE = Path(__file__).resolve().parents[1]
SCENES = "-m maskclip emoji scenes --out {folder}/scenes --count {count} --size 512"
COMMANDS = {
    "segment, emoji": "segment {photos} --vocabulary emoji --model emoji --out {out}",
    "segment, ViT-B-16": "segment {photos} --vocabulary voc20 --model ViT-B-16 --weights random "
    "--precision float32 --out {out}",
    "label, emoji": "label {photos} --vocabulary emoji --model emoji --format png,coco --out {out}",
    "label, ViT-B-16": "label {photos} --vocabulary voc20 --model ViT-B-16 --weights random "
    "--precision float32 --out {out}",
    "eval, emoji": "eval emoji --limit {count}",
    "train, emoji": "train emoji-annofree-rn --steps 12 --workers 0 --overlays 0 --validate-on 2 "
    "--out {out}",
}


def run(checkout: Path, command: str, folder: Path) -> None:
    """Run a command of a checkout, on one thread; its output folder is a new one."""
    env = {
        **os.environ,
        "PYTHONPATH": str(checkout / "src"),
        "PYTHONDONTWRITEBYTECODE": "",  # kept, as for any user after the first day
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode" / checkout.name),
        "XDG_CACHE_HOME": str(folder / "cache" / checkout.name),
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory(dir=folder) as out:
        line = shlex.split(command.replace("{out}", f"{out}/out"))
        done = subprocess.run(
            [sys.executable, "-m", "maskclip", *line], env=env, cwd=folder, capture_output=True
        )
    if done.returncode:
        sys.exit(f"{checkout}: maskclip {command}\n{done.stderr.decode()}")


def compare(other: Path, names: Iterable[str], *, count: int, repeats: int) -> Rows:
    """Measure commands in turn, here and in the other checkout."""
    rows = [["command", "here, s", "there, s", "here / there"]]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        scenes = SCENES.format(folder=folder, count=count)
        subprocess.run([sys.executable, *shlex.split(scenes)], check=True, capture_output=True)
        for name in names:
            command = COMMANDS[name].replace("{photos}", f"{folder}/scenes/JPEGImages")
            command = command.replace("{count}", str(count))
            both = {str(path): partial(run, path, command, folder) for path in (HERE, other)}
            times = in_turn(both, repeats, clock="children")
            here, there = both
            rows.append([name, spans(times[here]), spans(times[there]), ratios(times, here, there)])
    return rows


def main(arguments: Iterable[str] | None = None) -> None:
    parser = ArgumentParser(description="Compare the time of commands with another checkout's.")
    parser.add_argument("other", type=Path, help="the root of the other checkout")
    parser.add_argument("--commands", nargs="*", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--count", type=int, default=12, help="scenes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(None if arguments is None else list(arguments))
    other = options.other.resolve()
    rows = compare(other, options.commands, count=options.count, repeats=options.repeats)
    show(f"This checkout against {other.name}", rows, markdown=options.markdown)
    print(machine())


if __name__ == "__main__":
    main()
