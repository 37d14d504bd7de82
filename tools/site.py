"""The site of `make docs`: `python -m tools.site` gathers its pages in build/pages.

Those of docs/ lie there as they are. CHANGELOG, CONTRIBUTING and the benchmarks become pages of the
site, and links between pages are those of GitHub. Two references are written from what there is:
the commands, from their own help, and the Python names, from `maskclip.__all__`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import maskclip

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "pages"
MOVED = {
    "benchmarks/README.md": "benchmarks.md",
    "tests/golden/README.md": "golden.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Documents outside docs/ -> pages of the site."""
LINK = re.compile(r"\[([^\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def gather() -> None:
    """Write the pages into an empty folder."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES)
    for document in sorted((ROOT / "docs").glob("*.md")):
        _write(document, PAGES / document.name)
    for path, page in MOVED.items():
        _write(ROOT / path, PAGES / page)
    (PAGES / "commands.md").write_text(commands())
    (PAGES / "python.md").write_text(python_names())


def _write(document: Path, page: Path) -> None:
    """Copy a document to a page, with its links to other documents turned into those to pages."""

    def turned(found: re.Match[str]) -> str:
        text, target, place = found[1], document.parent / found[2], found[3] or ""
        if not target.exists():
            return found[0]  # the builder says that it is broken
        relative = Path(os.path.normpath(target)).relative_to(ROOT).as_posix()
        if relative in MOVED:
            return f"[{text}]({MOVED[relative]}{place})"
        if relative.startswith("docs/"):
            return f"[{text}]({relative.removeprefix('docs/')}{place})"
        return text  # a file of the repository that is no page

    page.write_text(LINK.sub(turned, document.read_text()))


def commands() -> str:
    """Return the reference of all verbs and options, as Typer writes it."""
    run = [sys.executable, "-m", "typer", "maskclip.cli", "utils", "docs", "--name", "maskclip"]
    found = subprocess.run(
        [*run, "--title", "Commands"], check=True, capture_output=True, text=True
    )
    return found.stdout


def python_names() -> str:
    """Return the page of the public names, which the builder fills from their docstrings."""
    start = "# Python\n\nWhat `maskclip.__all__` names is public, and nothing else.\n"
    homes = (f"{getattr(maskclip, name).__module__}.{name}" for name in maskclip.__all__)
    return "\n".join([start, *(f"::: {home}\n" for home in homes)])


if __name__ == "__main__":
    gather()
