"""The site of `make docs`: `python -m tools.site` gathers its pages in build/pages.

Those of docs/ lie there as they are. CHANGELOG, CONTRIBUTING, the benchmarks and the notebooks, as
they are stored, become pages, and links between pages are those of GitHub. Two
references are written from what there is: the commands, from their own help, and the Python names,
from `maskclip.__all__`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tools import notebooks

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "pages"
MOVED = {
    "benchmarks/README.md": "benchmarks.md",
    "tests/golden/README.md": "golden.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    **{f"examples/{path.name}": f"{path.stem}.md" for path in notebooks.paths()},
}
"""Documents outside docs/ -> pages of the site."""
SEARCH = "iframe-worker.js"
"""What lets pages that are opened from files search."""
PARTS = {
    "Label photos": ("load", "Segmenter", "Segmentation", "Options", "EncodedPhoto"),
    "Words": ("Vocabulary",),
    "Models and methods": ("ModelConfig", "Method", "METHODS"),
    "Features": ("DenseCLIP", "Dense"),
    "A service": ("Client", "Answer", "AnswerClass"),
    "Errors": ("MaskCLIPError", "MaskCLIPWarning"),
}
"""The public names, in the order in which one needs them."""
MEMBERS = {
    "Segmenter": ("segment", "encode", "score", "heat", "prepare"),
    "DenseCLIP": ("encode", "forward", "pool", "prepare"),
    "Dense": (),
}
"""What is public of a class whose other methods serve the package alone."""
LINK = re.compile(r"\[([^\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
SECTION = re.compile(r"^#+ `(maskclip [^`]+)`\n\n(.+?)\n\n", re.MULTILINE | re.DOTALL)
LISTED = re.compile(
    r"^#+ `(?P<heading>maskclip [^`]+)`$|^\* `(?P<verb>[a-z-]+)`: .*$", re.MULTILINE
)

PYTHON = """\
# Python

After this page you know what each public name takes and returns. Start with `load`: it gives a
`Segmenter`, and what that finds in a photo is a `Segmentation`.

```python
import maskclip

segmenter = maskclip.load("emoji")  # or "photo", "ViT-B-16:openai", a file ...
found = segmenter.segment("photo.jpg", ["dog", "balloon", "grass"])
found.save_png("labels.png")
found.overlay().save("overlay.png")
```

The examples below run as they are, after `import maskclip`, in a folder with the files that they
name. These commands make them; the photo is a drawn scene:

```sh
maskclip emoji scenes --out scenes --count 1 --seed 29
cp scenes/JPEGImages/scene_000029.jpg photo.jpg
cp photo.jpg a.jpg
cp photo.jpg b.jpg
printf 'dog\\nperson=man,woman\\ngrass\\n' > classes.txt
```

Those of `Client`, `Answer` and `AnswerClass` ask a service, which runs in another terminal:

```sh
maskclip serve --model emoji
```

An example of a method goes on from that of its class.

All names of this page are in `maskclip.__all__`, and [Versions](versions.md) says what is promised
of them. Modules and names that are not here may change at any time.
"""


def gather() -> None:
    """Write the pages into an empty folder."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES)
    for document in sorted((ROOT / "docs").glob("*.md")):
        _write(document, PAGES / document.name)
    for path, page in MOVED.items():
        _write(ROOT / path, PAGES / page)
    shutil.copy(ROOT / "tools" / SEARCH, PAGES)
    (PAGES / "commands.md").write_text(commands())
    (PAGES / "python.md").write_text(python_names())


def _write(document: Path, page: Path) -> None:
    """Write a document as a page, with its links to other documents turned into those to pages."""
    if document.suffix == ".ipynb":
        text, pictures = notebooks.page(notebooks.read(document), document.stem)
        for name, picture in pictures.items():
            (page.parent / name).write_bytes(picture)
    else:
        text = document.read_text()

    def turned(found: re.Match[str]) -> str:
        name, target, place = found[1], document.parent / found[2], found[3] or ""
        if not target.exists():
            return found[0]  # the builder says that it is broken
        relative = Path(os.path.normpath(target)).relative_to(ROOT).as_posix()
        if relative in MOVED:
            return f"[{name}]({MOVED[relative]}{place})"
        if relative.startswith("docs/"):
            return f"[{name}]({relative.removeprefix('docs/')}{place})"
        return name  # a file of the repository that is no page

    page.write_text(LINK.sub(turned, text))


def commands() -> str:
    """Return the reference of all verbs and options, as Typer writes it."""
    run = [sys.executable, "-m", "typer", "maskclip.cli", "utils", "docs", "--name", "maskclip"]
    found = subprocess.run(
        [*run, "--title", "Commands"], check=True, capture_output=True, text=True
    )
    return _linked(found.stdout)


def _linked(page: str) -> str:
    """Replace what Typer cuts of each verb in lists by the first sentence of its section."""
    names = dict(SECTION.findall(page))
    parent = "maskclip"

    def line(found: re.Match[str]) -> str:
        if found["heading"]:
            nonlocal parent
            parent = found["heading"]
            return found[0]
        name = f"{parent} {found['verb']}"
        if name not in names:
            return found[0]
        sentence = re.split(r"(?<=\.)\s", " ".join(names[name].split()), maxsplit=1)[0]
        anchor = name.replace(" ", "-")
        return f"* [`{found['verb']}`](#{anchor}): {sentence}"

    return LISTED.sub(line, page)


def python_names() -> str:
    """Return the page of the public names, which the builder fills from their docstrings."""
    lines = [PYTHON]
    for part, names in PARTS.items():
        lines.append(f"## {part}\n")
        for name in names:
            lines.append(f"::: maskclip.{name}")
            if name in MEMBERS:
                members = json.dumps(MEMBERS[name])
                lines.append(f"    options:\n      members: {members}")
            lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    gather()
