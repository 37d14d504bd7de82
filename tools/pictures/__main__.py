"""Draw the pictures that are named, or all: `python -m tools.pictures [NAME ...]`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from maskclip.core.errors import MaskCLIPError
from tools.pictures import methods, models, pages, paper, words

DOCS = Path(__file__).resolve().parents[2] / "docs"
PICTURES: dict[str, Callable[[], Image.Image]] = {
    "photo": models.photos,
    "demo": models.scenes,
    "words-missing": words.missing,
    "words-color": words.color,
    "words-size": words.size,
    "methods": methods.methods,
    "methods-fewer-blocks": methods.fewer_blocks,
    "refinements": methods.refinements,
    "reading": paper.reading,
    "maps": paper.maps,
    "refined": paper.refined,
    "student": paper.student,
    "review": pages.review,
}


def main() -> None:
    """Draw and write them."""
    for name in sys.argv[1:] or PICTURES:
        if name not in PICTURES:
            raise SystemExit(f"no picture is called {name}: there are {', '.join(PICTURES)}")
        try:
            picture = PICTURES[name]()
        except MaskCLIPError as error:
            raise SystemExit(f"{name}: {error}") from None
        picture.save(DOCS / f"{name}.jpg", quality=72, optimize=True)


if __name__ == "__main__":
    main()
