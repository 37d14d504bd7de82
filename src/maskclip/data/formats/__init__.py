"""Label maps in the files that other tools import, by the names that users type.

A format is imported when it is first used: `segment` does without OpenCV and pycocotools, whose
import would be felt with a single photo.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats.base import (
    DEFAULT_FORMAT_OPTIONS,
    Format,
    FormatOptions,
    Labeled,
    PhotoFile,
)

__all__ = [
    "DEFAULT_FORMAT_OPTIONS",
    "FLAT_FORMATS",
    "FORMATS",
    "Format",
    "FormatOptions",
    "Labeled",
    "PhotoFile",
    "find_format",
    "open_formats",
]

FORMATS = {
    "png": "per_photo.Palette",
    "coco": "coco.Coco",
    "cvat": "cvat.Cvat",
    "label-studio": "label_studio.LabelStudio",
    "yolo": "yolo.Yolo",
    "probabilities": "per_photo.Probabilities",
    "overlay": "per_photo.Overlay",
    "scores": "per_photo.Scores",
    "json": "per_photo.Summary",
}
"""Name -> module and class; each has a folder of its own, as `maskclip label` writes them."""

FLAT_FORMATS = {
    "overlay": "per_photo.Overlay",
    "labels": "per_photo.LabelImage",
    "scores": "per_photo.Scores",
    "json": "per_photo.Summary",
}
"""Those whose files can share one folder, as `maskclip segment` writes them."""


def find_format(name: str) -> type[Format]:
    """Return the format of a name of `FORMATS` or `FLAT_FORMATS`."""
    module, _, kind = (FORMATS | FLAT_FORMATS)[name].partition(".")
    found: type[Format] = getattr(import_module(f"{__name__}.{module}"), kind)
    return found


def open_formats(
    names: tuple[str, ...],
    vocabulary: Vocabulary,
    out: Path,
    *,
    flat: bool = False,
    options: FormatOptions = DEFAULT_FORMAT_OPTIONS,
) -> list[Format]:
    """Return formats that write into `out`, each into a folder of its name unless `flat`.

    Args:
        names: of `FORMATS`, or of `FLAT_FORMATS` if `flat`.
        vocabulary: the classes.
        out: the folder of all files.
        flat: whether the formats share the folder.
        options: what users choose of single formats.

    Raises:
        MaskCLIPError: one of them cannot hold the vocabulary.
    """
    return [find_format(name)(vocabulary, out if flat else out / name, options) for name in names]
