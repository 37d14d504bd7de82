"""The benchmark data sets: where their files are, and the published settings of each.

The layouts are those of mmsegmentation, all below one root folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Part:
    """A folder of images and one of masks, and the list of samples to take from them.

    Attributes:
        images, masks: folders; masks are in the same subfolders as their images.
        image_suffix, mask_suffix: what follows a sample's name in the names of its two files.
        listing: text file of one name per line; None takes all images of the folder.
        conversion: the argument of `maskclip data convert` that makes the masks; None if they
            are distributed as they are.
    """

    images: str
    masks: str
    image_suffix: str = ".jpg"
    mask_suffix: str = ".png"
    listing: str | None = None
    conversion: str | None = None


@dataclass(frozen=True)
class Split:
    """One or more parts, and the official number of samples."""

    parts: tuple[Part, ...]
    official: int


@dataclass(frozen=True)
class Spec:
    """One data set.

    Attributes:
        name: what users type; also the name of its vocabulary.
        splits: by name.
        reduce_zero: see `LabelRule`.
        palette: the colours of masks that are encoded as colours: Pascal VOC's, of which the
            last means ignore, or those of its vocabulary; None if there are no such masks.
        unseen: ids of the unseen classes of the zero-shot split.
        scale: (long, short) side of the published test size in px (published code, S3).
        windows_short: short side in px under the sliding-window protocol.
    """

    name: str
    splits: dict[str, Split]
    reduce_zero: bool = False
    palette: Literal["voc", "own"] | None = None
    unseen: tuple[int, ...] = ()
    scale: tuple[int, int] = (2048, 512)
    windows_short: int = 336


def _voc_splits() -> dict[str, Split]:
    home = "VOCdevkit/VOC2012"
    lists = f"{home}/ImageSets/Segmentation"
    train = Part(f"{home}/JPEGImages", f"{home}/SegmentationClass", listing=f"{lists}/train.txt")
    aug = Part(
        f"{home}/JPEGImages",
        f"{home}/SegmentationClassAug",
        listing=f"{lists}/aug.txt",
        conversion="voc-aug",
    )
    val = Part(f"{home}/JPEGImages", f"{home}/SegmentationClass", listing=f"{lists}/val.txt")
    return {
        "val": Split((val,), 1449),
        "train": Split((train,), 1464),
        "aug": Split((aug,), 9118),
        "trainaug": Split((train, aug), 10582),
    }


def _context_splits() -> dict[str, Split]:
    home = "VOCdevkit/VOC2010"
    sizes = {"val": 5105, "train": 4998}
    return {
        split: Split(
            (
                Part(
                    f"{home}/JPEGImages",
                    f"{home}/SegmentationClassContext",
                    listing=f"{home}/ImageSets/SegmentationContext/{split}.txt",
                    conversion="context",
                ),
            ),
            size,
        )
        for split, size in sizes.items()
    }


def _coco_splits(mask_suffix: str, conversion: str) -> dict[str, Split]:
    sizes = {"val": 5000, "train": 118_287}
    return {
        split: Split(
            (
                Part(
                    f"coco_stuff164k/images/{split}2017",
                    f"coco_stuff164k/annotations/{split}2017",
                    mask_suffix=mask_suffix,
                    conversion=conversion,
                ),
            ),
            size,
        )
        for split, size in sizes.items()
    }


def _cityscapes_splits() -> dict[str, Split]:
    sizes = {"val": 500, "train": 2975}
    return {
        split: Split(
            (
                Part(
                    f"cityscapes/leftImg8bit/{split}",
                    f"cityscapes/gtFine/{split}",
                    image_suffix="_leftImg8bit.png",
                    mask_suffix="_gtFine_labelTrainIds.png",
                    conversion="cityscapes",
                ),
            ),
            size,
        )
        for split, size in sizes.items()
    }


def _ade_splits() -> dict[str, Split]:
    home = "ade/ADEChallengeData2016"
    folders = {"val": ("validation", 2000), "train": ("training", 20_210)}
    return {
        split: Split((Part(f"{home}/images/{folder}", f"{home}/annotations/{folder}"),), size)
        for split, (folder, size) in folders.items()
    }


SPECS = {
    spec.name: spec
    for spec in (
        Spec(
            "voc20",
            _voc_splits(),
            reduce_zero=True,
            palette="voc",
            unseen=(15, 16, 17, 18, 19),
        ),
        Spec(
            "voc21",
            _voc_splits(),
            palette="voc",
            unseen=(16, 17, 18, 19, 20),
        ),
        Spec(
            "context59",
            _context_splits(),
            reduce_zero=True,
            unseen=(0, 6, 7, 14, 19, 24, 31, 33, 48, 54),
            scale=(520, 520),
        ),
        Spec(
            "context60",
            _context_splits(),
            unseen=(1, 7, 8, 15, 20, 25, 32, 34, 49, 55),
            scale=(520, 520),
        ),
        Spec(
            "cocostuff171",
            _coco_splits("_labelTrainIds.png", "cocostuff"),
            unseen=(19, 23, 28, 29, 36, 51, 76, 88, 94, 112, 133, 136, 137, 157, 160),
        ),
        Spec("cocoobject81", _coco_splits("_instanceTrainIds.png", "cocoobject")),
        Spec(
            "cityscapes19",
            _cityscapes_splits(),
            palette="own",
            scale=(2048, 1024),
            windows_short=560,
        ),
        Spec("ade150", _ade_splits(), reduce_zero=True),
    )
}
"""The data sets by name; ids in `unseen` are those of the data set's vocabulary."""
