"""How the label files of data sets, as they are distributed, become masks of class ids.

The meaning of their values, and the conversion of one file; `tasks.convert_labels` finds the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskclip.core.draw import palette_image
from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import atomic_path
from maskclip.core.palettes import voc_colors
from maskclip.core.vocabulary import IGNORE
from maskclip.data.masks import MaskError, open_mask

_INVALID = -1  # in tables: a value that does not occur in the data set
_ID_MODES = ("L", "P", "I", "I;16", "I;16B")  # Pillow's images of one integer per pixel

# Ids in the 459 classes (labels.txt of Pascal Context, from 1) of the 59 that are evaluated, in
# their order: the first is class 1 of Context-60. All others are its background, 0.
# fmt: off
CONTEXT_59 = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113,
    115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326,
    347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)
# fmt: on

# Among COCO's 182 ids (from 0), those of classes that were never annotated.
COCO_UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)

# Ids of Cityscapes' labels that are evaluated, in the order of their train ids.
CITYSCAPES_19 = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


class ConversionError(MaskCLIPError):
    """A label file that cannot be converted; the message says which and why, in one line."""


@dataclass(frozen=True, eq=False)
class Conversion:
    """How the label files of one data set become masks; all paths are relative to the data root.

    Attributes:
        name: what users type.
        title: the common name of its files.
        sources: folders of label files; the first that has some is used.
        patterns: glob patterns of the files in it; the first that matches some is used.
        targets: folder of the masks, in the same subfolders as their sources.
        table: (N,) int16; value in the source -> id in the mask, 0..255, or -1 for an invalid
            value.
        values: the valid values of a source, in words.
        ending: the end of the names of sources, and its replacement in the names of masks.
        variable: the label map in a MATLAB file: the variable, then fields within it.
        colored: whether masks are palette images in Pascal VOC's colours instead of greyscale.
        lists: files that list the images of each split.
        instances: glob pattern of COCO's instance annotations, which serve where there are no
            label files; empty if none do.
        vocabulary: of the masks that are made of these.
    """

    name: str
    title: str
    sources: tuple[str, ...]
    patterns: tuple[str, ...]
    targets: str
    table: npt.NDArray[np.int16]
    values: str
    ending: tuple[str, str] = ("", "")
    variable: tuple[str, ...] = ()
    colored: bool = False
    lists: tuple[str, ...] = ()
    instances: str = ""
    vocabulary: str = ""

    def target(self, file: str) -> str:
        """Return the path of a label file's mask; both are relative to their folders, with `/`."""
        path = PurePosixPath(file)
        old, new = self.ending
        return str(path.with_name(f"{path.stem.removesuffix(old)}{new}.png"))


def _table(
    ids: Mapping[int, int], *, size: int = 256, others: int = _INVALID
) -> npt.NDArray[np.int16]:
    table = np.full(size, others, np.int16)
    table[list(ids)] = list(ids.values())
    table.setflags(write=False)
    return table


def _coco_ids() -> dict[int, int]:
    used = (value for value in range(182) if value not in COCO_UNUSED)
    unused = dict.fromkeys((*COCO_UNUSED, 255), IGNORE)
    return {value: index for index, value in enumerate(used)} | unused


def _object_ids() -> dict[int, int]:
    """The 80 things are 1..80, and all kinds of stuff are background."""
    things = 80
    return {
        value: label if label == IGNORE else label + 1 if label < things else 0
        for value, label in _coco_ids().items()
    }


CONVERSIONS = {
    conversion.name: conversion
    for conversion in (
        Conversion(
            "voc-aug",
            "SBD (Pascal VOC's augmented training set)",
            sources=("VOCdevkit/VOCaug/dataset/cls",),
            patterns=("*.mat",),
            targets="VOCdevkit/VOC2012/SegmentationClassAug",
            table=_table({value: value for value in (*range(21), 255)}),
            values="0..20 and 255",
            variable=("GTcls", "Segmentation"),
            colored=True,
            lists=tuple(
                f"VOCdevkit/VOC2012/ImageSets/Segmentation/{name}.txt"
                for name in ("trainaug", "aug")
            ),
        ),
        Conversion(
            "context",
            "Pascal Context",
            sources=("VOCdevkit/VOC2010/trainval",),
            patterns=("*.mat", "*.png"),
            targets="VOCdevkit/VOC2010/SegmentationClassContext",
            table=_table(
                {value: index for index, value in enumerate(CONTEXT_59, start=1)},
                size=460,
                others=0,
            ),
            values="0..459",
            variable=("LabelMap",),
            colored=True,
            lists=tuple(
                f"VOCdevkit/VOC2010/ImageSets/SegmentationContext/{name}.txt"
                for name in ("train", "val")
            ),
        ),
        Conversion(
            "cocostuff",
            "COCO-Stuff 164k",
            # mmsegmentation's instructions unpack them into the second.
            sources=("coco_stuff164k/stuffthingmaps", "coco_stuff164k/annotations"),
            patterns=("*2017/*.png",),
            targets="coco_stuff164k/annotations",
            table=_table(_coco_ids()),
            values="0..181 and 255",
            ending=("", "_labelTrainIds"),
        ),
        Conversion(
            "cocoobject",
            "COCO-Object",
            sources=("coco_stuff164k/stuffthingmaps", "coco_stuff164k/annotations"),
            patterns=("*2017/*.png",),
            targets="coco_stuff164k/annotations",
            table=_table(_object_ids()),
            values="0..181 and 255",
            ending=("", "_instanceTrainIds"),
            instances="coco_stuff164k/annotations/instances_*2017.json",
            vocabulary="cocoobject81",
        ),
        Conversion(
            "cityscapes",
            "Cityscapes",
            sources=("cityscapes/gtFine",),
            # A star first: `**` does not enter folders that are links, such as a linked `train`.
            patterns=("*/**/*_gtFine_labelIds.png",),
            targets="cityscapes/gtFine",
            table=_table({v: index for index, v in enumerate(CITYSCAPES_19)}, others=IGNORE),
            values="0..255",
            ending=("_labelIds", "_labelTrainIds"),
        ),
    )
}
"""The conversions by name."""


def convert_file(source: Path, target: Path, conversion: Conversion) -> None:
    """Write the mask of a label file as a uint8 PNG of the same size, atomically.

    Raises:
        ConversionError: the source is missing, damaged, or not a label map of this data set.
        OSError: the target cannot be written.
    """
    values = (
        read_mat(source, conversion.variable)
        if source.suffix.lower() == ".mat"
        else read_png(source)
    )
    try:
        mask = convert_values(values, conversion)
    except ConversionError as error:
        raise ConversionError(f"{source}: {error}") from None
    colors = voc_colors(256)  # all of them: in VOC's own masks 255 has a colour as well
    image = palette_image(mask, colors) if conversion.colored else Image.fromarray(mask)
    with atomic_path(target) as temporary:
        image.save(temporary, format="PNG")


def convert_values(values: npt.NDArray[Any], conversion: Conversion) -> npt.NDArray[np.uint8]:
    """Return class ids (H, W) for the values (H, W) of a label file.

    Raises:
        ConversionError: not integers, another shape, or values that the data set does not have.
    """
    if values.ndim != 2 or not values.size or not np.issubdtype(values.dtype, np.integer):
        raise ConversionError(
            f"expected one integer per pixel, got {values.dtype} of shape {values.shape}"
        )
    table = conversion.table
    outside = (values < 0) | (values >= len(table))
    ids = table[np.where(outside, 0, values)]
    invalid = np.unique(values[outside | (ids == _INVALID)])
    if invalid.size:
        more = f" and {invalid.size - 1} more" if invalid.size > 1 else ""
        raise ConversionError(
            f"value {invalid[0]}{more} out of range: labels of {conversion.title} are "
            f"{conversion.values}"
        )
    return ids.astype(np.uint8)


def read_png(path: Path) -> npt.NDArray[np.integer]:
    """Read a PNG of one number per pixel (H, W): 8 or 16 bit greyscale, or palette indices.

    Raises:
        ConversionError: missing, damaged, or of several channels.
    """
    try:
        image, stretched = open_mask(path)
    except MaskError as error:
        raise ConversionError(str(error)) from None
    if image.mode not in _ID_MODES:
        raise ConversionError(
            f"{path}: expected class ids (8 or 16 bit greyscale, or palette), got mode {image.mode}"
        )
    pixels: npt.NDArray[np.integer] = np.asarray(image)
    return pixels // pixels.dtype.type(stretched)


def read_mat(path: Path, variable: tuple[str, ...]) -> npt.NDArray[Any]:
    """Read an array from a MATLAB file of a version before 7.3.

    Args:
        path: the file.
        variable: its name, then names of fields within it.

    Raises:
        ConversionError: missing, damaged, or without that variable.
    """
    from scipy.io import loadmat  # type: ignore[import-untyped]

    name, *fields = variable
    try:
        with path.open("rb") as file:  # given a name, scipy would try others if it is missing
            content = loadmat(file, variable_names=[name])
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read ({_reason(error, path)})") from None
    except Exception as error:  # scipy raises anything on damaged data
        raise ConversionError(f"{path}: not a valid MATLAB file ({_reason(error, path)})") from None
    try:
        value = content[name]
        for field in fields:
            value = value[field][0, 0]  # a struct is a 1 x 1 array of structs
    except (KeyError, ValueError, IndexError):
        name = ".".join(variable)
        raise ConversionError(f"{path}: expected the variable {name}, which is not in it") from None
    return np.asarray(value)


def _reason(error: Exception, path: Path) -> str:
    """Return what went wrong in one line, without the path, which is in the message already."""
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return " ".join(text.replace(f" {str(path)!r}", "").split())


def voc_lists(
    *, train: Iterable[str], val: Iterable[str], sbd: Iterable[str]
) -> dict[str, list[str]]:
    """Return the image lists of the augmented training set, sorted.

    `aug` holds SBD's images that are in neither of VOC's sets; their masks are SBD's. `trainaug`
    holds these and VOC's own training images. Of the complete data sets: 9,118 and 10,582.
    """
    train, val = set(train), set(val)
    aug = set(sbd) - train - val
    return {"trainaug": sorted((train | aug) - val), "aug": sorted(aug)}
