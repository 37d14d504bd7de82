"""The best and the worst images of an evaluation: kept while it runs, then drawn side by side."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from maskclip.core.draw import shortened, sized_font
from maskclip.core.files import atomic_path
from maskclip.core.metrics import Scores
from maskclip.core.palettes import Color
from maskclip.core.samples import Ids, Sample

EXAMPLES = 6
"""Best and worst images kept, of each."""

_KEPT_SIDE = 320  # px: enough to look at, little to keep and send between processes

_Pixels = npt.NDArray[np.uint8]
_Swatch = tuple[str, Color | None]  # class name and colour; None is hatched

_PANELS = ("image", "ground truth", "prediction", "errors")
_SIDE, _GAP, _MARGIN = 320, 16, 24  # px, of and around the panels
_THINNEST = 8  # px: minimum short side of a panel, so that very long images stay visible
_WIDTH = len(_PANELS) * (_SIDE + _GAP) - _GAP + 2 * _MARGIN
_TITLE, _HEADING, _NAME, _SMALL = 26, 21, 17, 14  # font sizes

_PAPER, _INK, _FAINT_INK = (255, 255, 255), (32, 33, 36), (112, 117, 122)
_FRAME = (189, 193, 198)
_HATCH = (232, 234, 237), (205, 209, 214)  # where there is no class
_WRONG = (214, 40, 40)


@dataclass(frozen=True, eq=False)
class Example:
    """One image of an evaluation.

    Attributes:
        name: its title in the contact sheet; white space is collapsed.
        miou: of this image in [0, 1]; NaN if it has no labelled pixels.
        image: RGB, W x H.
        truth: (H, W) integer ids, or the ignored one where there is no label.
        prediction: (H, W) integer ids; those that are not a class count as wrong.
        rank: its place by mIoU, from 1 for the best, and of how many images; None if unknown.

    Raises:
        ValueError: the three differ in size.
    """

    name: str
    miou: float
    image: Image.Image
    truth: Ids
    prediction: Ids
    rank: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        size = (self.image.height, self.image.width)
        if not size == self.truth.shape == self.prediction.shape:
            raise ValueError(
                f"{self.name}: expected image, truth and prediction of one size (H, W), got "
                f"{size}, {self.truth.shape} and {self.prediction.shape}"
            )


def shrunk(example: Example, side: int) -> Example:
    """Return the example with a long side of at most `side` pixels; small ones stay as they are.

    Raises:
        ValueError: `side` is not positive.
    """
    if side < 1:
        raise ValueError(f"expected a side of at least one pixel, got {side}")
    scale = side / max(example.image.size)
    if scale >= 1:
        return example
    width, height = (max(1, round(scale * length)) for length in example.image.size)
    return _resized(example, width, height)


class BestAndWorst:
    """The images of highest and of lowest mIoU seen so far, shrunk."""

    def __init__(self) -> None:
        self.best: list[Example] = []
        self.worst: list[Example] = []
        self.count = 0

    def update(self, sample: Sample, prediction: Ids, scores: Scores) -> None:
        """Keep a sample if it is among the best or the worst; one without labels never is."""
        example = Example(
            sample.name, scores.miou, sample.image, sample.labels, np.asarray(prediction)
        )
        if math.isnan(example.miou):
            return
        self.count += 1
        if _ranks_among(self.best, example, _best_first) or _ranks_among(
            self.worst, example, _worst_first
        ):
            self._add(shrunk(example, _KEPT_SIDE))

    @staticmethod
    def merge(parts: Iterable[BestAndWorst]) -> tuple[list[Example], list[Example]]:
        """Return the best and the worst images of several processes, ranked; none is in both."""
        total = BestAndWorst()
        for part in parts:
            total.count += part.count
            for example in {one.name: one for one in (*part.best, *part.worst)}.values():
                total._add(example)
        best_names = {example.name for example in total.best}
        worst = [one for one in total.worst if one.name not in best_names]
        return (
            [replace(one, rank=(place + 1, total.count)) for place, one in enumerate(total.best)],
            [replace(one, rank=(total.count - place, total.count))
             for place, one in enumerate(worst)],
        )  # fmt: skip

    def _add(self, example: Example) -> None:
        self.best = sorted([*self.best, example], key=_best_first)[:EXAMPLES]
        self.worst = sorted([*self.worst, example], key=_worst_first)[:EXAMPLES]


# Names break ties, so that the order of the images does not matter.
def _best_first(example: Example) -> tuple[float, str]:
    return -example.miou, example.name


def _worst_first(example: Example) -> tuple[float, str]:
    return example.miou, example.name


def _ranks_among(
    kept: list[Example], example: Example, rank: Callable[[Example], tuple[float, str]]
) -> bool:
    return len(kept) < EXAMPLES or rank(example) < rank(kept[-1])


def contact_sheet(
    best: Sequence[Example],
    worst: Sequence[Example],
    path: str | os.PathLike[str],
    *,
    names: Sequence[str],
    colors: Sequence[Color],
    ignore: int,
    title: str,
) -> None:
    """Write a PNG of the examples in rows, the best above the worst.

    Headings say of how many images they are. A row shows the image, its ground truth, its
    prediction and its errors: wrong pixels in red on the greyscale image. Above it are the name,
    the mIoU and its rank, and a legend of the classes in it, largest first, as many as fit. Pixels
    without a class are hatched.

    Args:
        best, worst: in the order in which they are drawn; may be empty.
        path: of the PNG.
        names, colors: of the K classes.
        ignore: the id of ignored pixels in the ground truth.
        title: above the sheet; lines after the first are smaller.

    Raises:
        ValueError: `names` and `colors` differ in length.
        OSError: the file cannot be written.
    """
    if len(names) != len(colors):
        raise ValueError(
            f"expected a colour for each name, got {len(names)} names and {len(colors)} colours"
        )
    classes = _Classes([_one_line(name) for name in names], colors, ignore)
    first, *others = title.splitlines() or [""]
    strips = [_heading_strip(first, _TITLE), *(_heading_strip(line, _NAME) for line in others)]
    for heading, examples in (("Best", best), ("Worst", worst)):
        if examples:
            strips += [_heading_strip(_heading(heading, examples), _HEADING), _caption_strip()]
            strips += [_row(example, classes) for example in examples]
    if not (best or worst):
        strips.append(_heading_strip("nothing to show", _SMALL))
    sheet = _stacked(strips)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _heading(word: str, examples: Sequence[Example]) -> str:
    """Return "Worst 3 of 500 images"."""
    rank = examples[0].rank
    return word if rank is None else f"{word} {len(examples)} of {rank[1]:,} images, by mIoU"


@dataclass(frozen=True)
class _Classes:
    names: Sequence[str]
    colors: Sequence[Color]
    ignore: int

    def __len__(self) -> int:
        return len(self.names)


def _resized(example: Example, width: int, height: int) -> Example:
    """Resize the image with Lanczos if it shrinks, and label maps with nearest neighbour."""
    grows = width >= example.image.width and height >= example.image.height
    resampling = Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS
    rows = (np.arange(height) + 0.5) * example.image.height // height
    columns = (np.arange(width) + 0.5) * example.image.width // width
    places = np.ix_(rows.astype(np.intp), columns.astype(np.intp))
    return replace(
        example,
        image=example.image.convert("RGB").resize((width, height), resampling),
        truth=example.truth[places],
        prediction=example.prediction[places],
    )


def _row(example: Example, classes: _Classes) -> Image.Image:
    """Draw name, legend and four panels."""
    swatches = _present_classes(example, classes)  # counted before resizing loses thin ones
    example = _resized(example, *_panel_size(example.image))
    top = round(3.6 * _NAME)
    strip = Image.new("RGB", (_WIDTH, top + example.image.height + 2 * _GAP), _PAPER)
    draw = ImageDraw.Draw(strip)

    name, font = _one_line(example.name), sized_font(_NAME)
    miou = "mIoU unknown" if math.isnan(example.miou) else f"mIoU {100 * example.miou:.1f} %"
    rank = "" if example.rank is None else "rank {:,} of {:,}".format(*example.rank)
    room = round(_WIDTH - 2 * _MARGIN - font.getlength(miou + rank) - 2 * _GAP)
    name = shortened(name, font, limit=room)
    after = _MARGIN + font.getlength(name) + (_GAP if name else 0)
    draw.text((_MARGIN, _NAME), name, fill=_INK, font=font, anchor="lm")
    draw.text((after, _NAME), miou, fill=_INK, font=font, anchor="lm")
    after += font.getlength(miou) + _GAP
    draw.text((after, _NAME), rank, fill=_FAINT_INK, font=font, anchor="lm")
    _draw_swatches(strip, swatches, _MARGIN, round(2.5 * _NAME))

    panels = (
        example.image,
        Image.fromarray(_label_panel(example.truth, classes, example.truth == classes.ignore)),
        Image.fromarray(_label_panel(example.prediction, classes, np.False_)),
        Image.fromarray(_error_panel(example, classes.ignore)),
    )
    for index, panel in enumerate(panels):
        left = _panel_left(index)
        strip.paste(panel, (left, top))
        frame = (left - 1, top - 1, left + panel.width, top + panel.height)
        draw.rectangle(frame, outline=_FRAME)
    return strip


def _panel_size(image: Image.Image) -> tuple[int, int]:
    """Fit into a square panel; enlarge by an integer factor, so that pixels stay squares."""
    scale = _SIDE / max(image.size)
    if scale > 1:
        scale = math.floor(scale)
    width, height = (max(_THINNEST, round(scale * length)) for length in image.size)
    return width, height


def _panel_left(index: int) -> int:
    return _MARGIN + index * (_SIDE + _GAP)


def _label_panel(ids: Ids, classes: _Classes, hidden: npt.ArrayLike) -> _Pixels:
    """Return (H, W, 3): the colours of classes, hatched where `hidden` or not a class."""
    shown = (ids >= 0) & (ids < len(classes)) & ~np.asarray(hidden)
    panel = _hatched(*ids.shape)
    panel[shown] = np.asarray(classes.colors, dtype=np.uint8).reshape(-1, 3)[ids[shown]]
    return panel


def _error_panel(example: Example, ignore: int) -> _Pixels:
    """Return (H, W, 3): dark grey where correct, red where wrong, hatched where ignored."""
    gray = np.asarray(example.image.convert("L"), dtype=np.float32)[..., None] / 255
    panel = np.broadcast_to(40 + 110 * gray, (*gray.shape[:2], 3)).astype(np.uint8)
    wrong = example.truth != example.prediction
    shades = np.asarray(_WRONG) * (0.75 + 0.25 * gray)  # the image stays visible below the red
    panel[wrong] = shades[wrong].astype(np.uint8)
    ignored = example.truth == ignore
    panel[ignored] = _hatched(*ignored.shape)[ignored]
    return panel


def _hatched(height: int, width: int) -> _Pixels:
    """Return (H, W, 3) of diagonal stripes, four pixels wide."""
    stripes = (np.arange(height)[:, None] + np.arange(width)) // 4 % 2
    hatched: _Pixels = np.asarray(_HATCH, dtype=np.uint8)[stripes]
    return hatched


def _present_classes(example: Example, classes: _Classes) -> list[_Swatch]:
    """Return the classes of ground truth and prediction, largest first."""
    pixels = np.zeros(len(classes), np.int64)
    for ids in (example.truth[example.truth != classes.ignore], example.prediction):
        known = ids[(ids >= 0) & (ids < len(classes))]
        pixels += np.bincount(known.astype(np.intp), minlength=len(classes))
    order = np.argsort(-pixels, kind="stable")[: np.count_nonzero(pixels)]
    return [(classes.names[index], classes.colors[index]) for index in order]


def _draw_swatches(strip: Image.Image, swatches: Sequence[_Swatch], left: int, middle: int) -> None:
    """Draw a legend: coloured squares with class names, as many as fit; count the others."""
    draw, font = ImageDraw.Draw(strip), sized_font(_SMALL)
    for index, (words, color) in enumerate(swatches):
        text = shortened(words, font, limit=12 * _SMALL)
        width = math.ceil(1.4 * _SMALL + font.getlength(text) + _GAP)
        rest = len(swatches) - index
        needed = width if rest == 1 else width + 6 * _SMALL  # "+ 99999 more" follows
        if left + needed > _WIDTH - _MARGIN + _GAP:
            draw.text((left, middle), f"+ {rest} more", fill=_FAINT_INK, font=font, anchor="lm")
            return
        top = middle - _SMALL // 2
        square = Image.fromarray(_hatched(_SMALL, _SMALL))
        if color is not None:
            square.paste(color, (0, 0, *square.size))
        strip.paste(square, (left, top))
        draw.rectangle((left, top, left + _SMALL - 1, top + _SMALL - 1), outline=_FRAME)
        place = (left + round(1.4 * _SMALL), middle)
        draw.text(place, text, fill=_INK, font=font, anchor="lm")
        left += width


def _heading_strip(words: str, size: int) -> Image.Image:
    strip = Image.new("RGB", (_WIDTH, 2 * size), _PAPER)
    text = shortened(_one_line(words), sized_font(size), limit=_WIDTH - 2 * _MARGIN)
    place = (_MARGIN, round(1.2 * size))
    ImageDraw.Draw(strip).text(place, text, fill=_INK, font=sized_font(size), anchor="lm")
    return strip


def _caption_strip() -> Image.Image:
    """Draw the names of the columns, and a legend for red and hatched pixels."""
    strip = Image.new("RGB", (_WIDTH, 2 * _SMALL), _PAPER)
    draw, font = ImageDraw.Draw(strip), sized_font(_SMALL)
    for index, words in enumerate(_PANELS):
        place = (_panel_left(index), _SMALL)
        draw.text(place, words, fill=_FAINT_INK, font=font, anchor="lm")
    key = round(_panel_left(len(_PANELS) - 1) + font.getlength(_PANELS[-1]) + 2 * _GAP)
    _draw_swatches(strip, [("wrong", _WRONG), ("no label", None)], key, _SMALL)
    return strip


def _stacked(strips: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (_WIDTH, sum(strip.height for strip in strips) + _MARGIN), _PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _one_line(words: str) -> str:
    """Collapse white space, and drop control characters, which would be drawn as boxes."""
    kept = [c for c in words if c.isspace() or unicodedata.category(c)[0] != "C"]
    return " ".join("".join(kept).split())
