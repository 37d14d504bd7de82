"""Label maps in the files that other tools import: `FORMATS`, by the names that users type."""

from __future__ import annotations

from pathlib import Path

from maskclip.core.errors import read_choices
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats.base import Format, Labeled
from maskclip.data.formats.coco import Coco
from maskclip.data.formats.cvat import Cvat
from maskclip.data.formats.label_studio import LabelStudio
from maskclip.data.formats.palette import Palette
from maskclip.data.formats.scores import Scores
from maskclip.data.formats.yolo import Yolo

__all__ = ["FORMATS", "Format", "Labeled", "open_formats", "read_format_names"]

FORMATS: dict[str, type[Format]] = {
    "png": Palette,
    "coco": Coco,
    "cvat": Cvat,
    "label-studio": LabelStudio,
    "yolo": Yolo,
    "scores": Scores,
}


def read_format_names(text: str) -> tuple[str, ...]:
    """Read a list such as `png,coco`.

    Raises:
        MaskCLIPError: a format is unknown, or there is none.
    """
    return read_choices(text, FORMATS, to="write")


def open_formats(names: tuple[str, ...], vocabulary: Vocabulary, out: Path) -> list[Format]:
    """Return the formats of these names, each with a folder of its name in `out`.

    Raises:
        MaskCLIPError: one of them cannot hold the vocabulary.
    """
    return [FORMATS[name](vocabulary, out / name) for name in names]
