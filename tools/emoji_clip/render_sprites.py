"""Render the sheet of sprites again: `python -m tools.emoji_clip.render_sprites --font FILE`.

The font is NotoColorEmoji.ttf (Debian: package fonts-noto-color-emoji; SIL Open Font License 1.1).
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from maskclip.core.files import atomic_path
from maskclip.emoji.sprites import CELL, COLUMNS, index, sprites_folder

FONT_SIZE = 109  # the one size in which the font holds its bitmaps


def render_sheet(font_file: Path) -> Image.Image:
    """Render every object of the index from a colour bitmap font into one RGBA sheet.

    Raises:
        OSError: the font cannot be read, or has no bitmaps of size 109.
    """
    font = ImageFont.truetype(font_file, FONT_SIZE)
    rows = -(-len(index()) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for position, entry in enumerate(index().values()):
        glyph = Image.new("RGBA", (CELL + 32, CELL + 32))
        ImageDraw.Draw(glyph).text((8, 8), entry.character, font=font, embedded_color=True)
        glyph = glyph.crop(glyph.getbbox())
        glyph.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
        row, column = divmod(position, COLUMNS)
        left = column * CELL + (CELL - glyph.width) // 2
        sheet.paste(glyph, (left, row * CELL + (CELL - glyph.height) // 2))
    return _without_invisible_color(sheet)


def _without_invisible_color(sheet: Image.Image) -> Image.Image:
    pixels: NDArray[np.uint8] = np.array(sheet)
    pixels[pixels[..., 3] == 0] = 0  # colours nobody sees would only make the file larger
    return Image.fromarray(pixels)


def main() -> None:
    """Write the sheet beside the index."""
    parser = argparse.ArgumentParser(description="Render the sprite sheet again from its font.")
    parser.add_argument(
        "--font", type=Path, default="/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    )
    parser.add_argument("--out", type=Path, default=str(sprites_folder().joinpath("sheet.png")))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with atomic_path(arguments.out) as temporary:
        render_sheet(arguments.font).save(temporary, optimize=True)
    logging.info("%s: %d bytes", arguments.out, arguments.out.stat().st_size)


if __name__ == "__main__":
    main()
