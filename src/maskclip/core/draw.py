"""Drawing label maps: palette images, colours blended over the photo, a legend beside it.

Pure functions on images and arrays; they do not know what a vocabulary is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Real

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from maskclip.core.errors import MaskCLIPError
from maskclip.core.palettes import BLACK, IGNORED_COLOR, Color
from maskclip.core.specks import SPECK, specks
from maskclip.core.text import check_kind

Labels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
LegendEntry = tuple[str, Color, float]  # name, colour, fraction of the picture in 0..1

MAX_LEGEND_ROWS = 24

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_BAND = 4_000_000  # pixels that are worked on at once
_PAPER: Color = (255, 255, 255)
_INK: Color = (32, 33, 36)
_FAINT_INK: Color = (112, 117, 122)
_FAINT = [round(128 + 0.75 * (level - 128)) for level in range(256)]  # of grey levels
_LINES = 10  # pixels that the lines between regions reach, at most
_DISPLAY_SIDE = 256  # pictures smaller than this are enlarged to be seen beside a legend
_LONGEST_NAME = 15  # in font sizes; longer names end in an ellipsis


def palette_image(labels: Labels, colors: Sequence[Color]) -> Image.Image:
    """Return `labels` (H, W) uint8 as a palette image (mode P) that shows class i in colour i.

    A label beyond the colours, which is the ignored one, is VOC's cream: without a colour of its
    own, a file would not hold it.

    Raises:
        ValueError: labels of another type or shape.
    """
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(
            f"a palette image holds labels (H, W) of uint8, got {labels.dtype} {labels.shape}"
        )
    image = Image.fromarray(np.ascontiguousarray(labels))
    unused = int(labels.max(initial=0)) - len(colors)
    if unused >= 0:
        colors = (*colors, *[BLACK] * unused, IGNORED_COLOR)
    image.putpalette(np.asarray(colors[:256], dtype=np.uint8).tobytes())
    return image


def overlay(
    image: Image.Image, labels: Labels, colors: Sequence[Color], *, opacity: float = 0.62
) -> Image.Image:
    """Blend class colours over the photo and draw lines where regions meet, but none around specks.

    Under the colours the photo becomes grey and of less contrast, the more the more opaque they
    are: a class has the hue of its legend whatever it lies on, and pale ones can be told from dark.

    Args:
        image: RGB, W x H.
        labels: (H, W), indices into `colors`; where a label is beyond them, the photo shows.
        colors: one per class.
        opacity: of the colours, from 0 (photo and lines alone) to 1.

    Returns:
        An RGB image of the same size.

    Raises:
        ValueError: the sizes differ, or the opacity is out of range.
    """
    drawn = Image.new("RGB", image.size)
    _draw_over(drawn, image, labels, colors, opacity)
    return drawn


def _draw_over(
    canvas: Image.Image,
    image: Image.Image,
    labels: Labels,
    colors: Sequence[Color],
    opacity: float,
) -> None:
    """Draw what `overlay` returns into the corner of a canvas, band by band.

    Raises:
        ValueError: as `overlay`.
    """
    if (image.height, image.width) != labels.shape:
        raise ValueError(
            f"the image is {image.width}x{image.height} but the labels are (H, W) = {labels.shape}"
        )
    expected = "`opacity`: expected a number between 0 and 1"
    check_kind(opacity, Real, expected)
    if not 0 <= opacity <= 1:
        raise MaskCLIPError(f"{expected}, got {opacity}")
    reach = min(4, round(math.sqrt(labels.size) / 1200))  # one pixel wide up to 600 x 600
    far = _LINES + SPECK * (2 * reach + 1)  # as far as one must look to tell a speck
    height, width = labels.shape
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(0, top - _LINES), min(height, bottom + _LINES)
        band = image.crop((0, first, width, last)).convert("RGB")
        above = max(0, top - far)
        small = specks(labels[above : bottom + far], line=2 * reach + 1)
        edges = _edges(labels[first:last], small[first - above : last - above])
        drawn = _blended(band, labels[first:last], colors, opacity, edges, reach)
        canvas.paste(drawn.crop((0, top - first, width, bottom - first)), (0, top))


def _blended(
    image: Image.Image,
    labels: Labels,
    colors: Sequence[Color],
    opacity: float,
    edges: npt.NDArray[np.bool_],
    reach: int,
) -> Image.Image:
    ignored = labels >= len(colors)
    known = np.where(ignored, labels.dtype.type(0), labels) if ignored.any() else labels
    if labels.dtype == np.uint8:
        layer = palette_image(known, colors).convert("RGB")  # five times as fast as indexing
    else:
        layer = Image.fromarray(np.asarray(colors, dtype=np.uint8)[known])
    grey = image.convert("L").point(_FAINT).convert("RGB")
    below = Image.blend(image, grey, min(1.0, 2 * opacity))
    blended = Image.blend(below, layer, opacity)
    _draw_lines(blended, edges, reach)
    if known is not labels:
        blended.paste(image, mask=Image.fromarray(ignored))
    return blended


def overlay_with_legend(
    image: Image.Image,
    labels: Labels,
    names: Sequence[str],
    colors: Sequence[Color],
    *,
    opacity: float = 0.62,
) -> Image.Image:
    """Return `overlay` with a legend of the classes that appear, the most common first.

    A picture that is small is enlarged by a whole factor before; one that is a mere line of many
    pixels has no legend.

    Args:
        image: RGB, W x H.
        labels: (H, W), indices into `names`; where a label is beyond them, the photo shows.
        names, colors: one per class.
        opacity: of the colours, from 0 to 1.

    Raises:
        ValueError: as `overlay`.
    """
    found = class_pixels(labels, len(names))
    entries = [(names[i], colors[i], pixels / labels.size) for i, pixels in found]
    factor = display_factor(*image.size)
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.BOX)
        labels = labels.repeat(factor, axis=0).repeat(factor, axis=1)
    canvas = _beside_legend(image.size, entries)
    _draw_over(canvas, image, labels, colors, opacity)
    return canvas


def class_pixels(labels: Labels, count: int) -> list[tuple[int, int]]:
    """Return (label, number of pixels) of the labels below `count` that appear, largest first."""
    flat, counts = labels.ravel(), np.zeros(count, np.int64)
    for start in range(0, flat.size, _BAND):  # counting takes 8 bytes a pixel
        counts += np.bincount(flat[start : start + _BAND], minlength=count)[:count]
    order = np.argsort(-counts, kind="stable")
    return [(int(label), int(counts[label])) for label in order if counts[label]]


def _edges(labels: Labels, small: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the pixels before whose right or lower side another region begins; specks are none."""
    across, down = labels[:, :-1] != labels[:, 1:], labels[:-1] != labels[1:]
    if small.any():
        across &= ~(small[:, :-1] | small[:, 1:])
        down &= ~(small[:-1] | small[1:])
    edges = np.zeros(labels.shape, dtype=bool)
    edges[:, :-1] = across
    edges[:-1] |= down
    return edges


def _draw_lines(image: Image.Image, edges: npt.NDArray[np.bool_], reach: int) -> None:
    """Draw a light line within a dark one: readable on any photo and between any two colours."""
    light = _dilated(edges, reach)
    dark = _dilated(light, max(1, reach))
    image.paste((0, 0, 0), mask=Image.fromarray(dark * np.uint8(115)))
    image.paste((255, 255, 255), mask=Image.fromarray(light * np.uint8(230)))


def _dilated(mask: npt.NDArray[np.bool_], radius: int) -> npt.NDArray[np.bool_]:
    """Grow what is true by `radius` pixels to all sides, as a square does."""
    wide = mask.copy()
    for shift in range(1, radius + 1):
        wide[:, shift:] |= mask[:, :-shift]
        wide[:, :-shift] |= mask[:, shift:]
    grown = wide.copy()
    for shift in range(1, radius + 1):
        grown[shift:] |= wide[:-shift]
        grown[:-shift] |= wide[shift:]
    return grown


def with_legend(image: Image.Image, entries: Sequence[LegendEntry]) -> Image.Image:
    """Return the image with a legend below it, or to its right when it is tall.

    At most `MAX_LEGEND_ROWS` entries are listed in the order given, then how many more there are.
    Names that are too long end in an ellipsis; characters that Pillow's built-in font lacks show as
    boxes. An image that is small should be enlarged before, by `display_factor`.
    """
    canvas = _beside_legend(image.size, entries)
    canvas.paste(image.convert("RGB"), (0, 0))
    return canvas


def _beside_legend(image_size: tuple[int, int], entries: Sequence[LegendEntry]) -> Image.Image:
    """Return a canvas with a legend, and room in its upper left corner for an image."""
    width, height = image_size
    rows = [_Row(name, percent(part), color) for name, color, part in entries]
    if len(rows) > MAX_LEGEND_ROWS:
        more = f"+ {len(rows) - MAX_LEGEND_ROWS} more"
        rows = [*rows[:MAX_LEGEND_ROWS], _Row(more, "", None)]
    if not rows or _is_line(width, height):
        return Image.new("RGB", image_size, _PAPER)
    size = min(96, max(13, round(0.034 * math.sqrt(width * height))))
    tall = height > 1.5 * width
    panel = _panel(rows, size=size, width=None if tall else width, height=height)
    canvas_size = (
        (width + panel.width, max(height, panel.height))
        if tall
        else (max(width, panel.width), height + panel.height)
    )
    canvas = Image.new("RGB", canvas_size, _PAPER)
    canvas.paste(panel, (width, 0) if tall else (0, height))
    return canvas


def _is_line(width: int, height: int) -> bool:
    """Return whether an image is so narrow that the paper beside it would take all the memory."""
    long, short = max(width, height), min(width, height)
    return long > 20_000 and long > 100 * short


def display_factor(width: int, height: int) -> int:
    """Return the whole factor that makes an image large enough to be shown with a legend."""
    long, short = max(width, height), min(width, height)
    return max(1, math.ceil(_DISPLAY_SIDE / long), min(_DISPLAY_SIDE // 8 // short, 1024 // long))


def percent(fraction: float) -> str:
    """Return how a part of a picture is written wherever it is: "12.3 %"."""
    return "< 0.1 %" if 0 < fraction < 0.0005 else f"{100 * fraction:.1f} %"


@dataclass(frozen=True)
class _Row:
    name: str
    figure: str
    color: Color | None


def _panel(rows: list[_Row], *, size: int, width: int | None, height: int) -> Image.Image:
    """Lay rows out in columns, filled one after the other, that fit a width or a height."""
    font = sized_font(size)
    rows = [
        replace(row, name=shortened(row.name, font, limit=_LONGEST_NAME * size)) for row in rows
    ]
    row_height = round(1.5 * size)
    if width is None:
        columns = _columns(rows, per_column=max(1, (height - size) // row_height))
        widths = [_column_width(column, font, size) for column in columns]
    else:  # as many columns as the width has room for
        for per_column in range(1, len(rows) + 1):
            columns = _columns(rows, per_column=per_column)
            widths = [_column_width(column, font, size) for column in columns]
            if sum(widths) + 2 * size * len(widths) <= width:
                break
    panel_size = (sum(widths) + 2 * size * len(widths), len(columns[0]) * row_height + size)
    panel = Image.new("RGB", panel_size, _PAPER)
    left = size
    for column, column_width in zip(columns, widths, strict=True):
        for index, row in enumerate(column):
            middle = size // 2 + index * row_height + row_height // 2
            _draw_row(ImageDraw.Draw(panel), row, font, (left, middle, column_width, size))
        left += column_width + 2 * size
    return panel


def _columns(rows: list[_Row], *, per_column: int) -> list[list[_Row]]:
    return [rows[start : start + per_column] for start in range(0, len(rows), per_column)]


def _column_width(rows: list[_Row], font: Font, size: int) -> int:
    """Swatch, name and figure side by side, with space between."""
    names = max(font.getlength(row.name) for row in rows)
    figures = max(font.getlength(row.figure) for row in rows)
    return math.ceil(1.5 * size + names + size + figures)


def _draw_row(
    draw: ImageDraw.ImageDraw, row: _Row, font: Font, place: tuple[int, int, int, int]
) -> None:
    left, middle, width, size = place
    ink = _FAINT_INK
    if row.color is not None:
        top = middle - size // 2
        draw.rounded_rectangle(
            (left, top, left + size, top + size), radius=size // 5, fill=row.color
        )
        ink = _INK
    draw.text((left + round(1.5 * size), middle), row.name, fill=ink, font=font, anchor="lm")
    draw.text((left + width, middle), row.figure, fill=_FAINT_INK, font=font, anchor="rm")


@lru_cache(maxsize=8)
def sized_font(size: int) -> Font:
    """Return Pillow's built-in font, `size` pixels high."""
    return ImageFont.load_default(size=size)


def shortened(name: str, font: Font, *, limit: int) -> str:
    """Return the name, ended early by an ellipsis where it is wider than `limit` pixels."""
    # A name from elsewhere may hold half a surrogate pair, which no font can draw.
    name = name.encode("utf-8", "replace").decode("utf-8")
    if font.getlength(name[:200]) <= limit and len(name) <= 200:
        return name
    kept = name[:200]
    while kept and font.getlength(kept + "…") > limit:
        kept = kept[:-1]
    return kept.rstrip() + "…"
