"""The data set that a verb measures on: opened by its options, with a warning if it is odd."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maskclip.cli import options as opt
from maskclip.core.errors import MaskCLIPError
from maskclip.data.specs import SPECS

if TYPE_CHECKING:
    from maskclip.core.samples import Samples
    from maskclip.tasks.evaluation.settings import Evaluation

DATASETS = (*SPECS, "emoji", "folder")


def default_evaluation(
    dataset: str, protocol: str | None = None, *, model: str | None = None
) -> Evaluation:
    """Return how a data set is evaluated where nothing else, or only this, is given."""
    from maskclip.core.config import DEFAULT_MODEL, PREVIEWS, ModelConfig
    from maskclip.tasks.evaluation.settings import Evaluation, default_templates

    name = model or ("emoji" if dataset == "emoji" else DEFAULT_MODEL)
    own = dataset in ("emoji", "folder") or name in PREVIEWS  # of which there are no papers
    protocol = protocol or ("segment" if own else "published")
    return Evaluation(
        dataset=dataset,
        model=ModelConfig(name=name, templates=default_templates(protocol), precision="float32"),
        protocol=protocol,
    )


def open_samples(
    name: str,
    *,
    data: Path | None,
    split: str | None,
    size: int | None,
    images: Path | None,
    masks: Path | None,
    classes: Path | None,
) -> Samples:
    """Open a data set; refuse options that do not belong to it.

    Raises:
        MaskCLIPError: says which option, or what is missing.
    """
    if name != "emoji":
        if size is not None:
            raise MaskCLIPError(f"--size belongs to `emoji`, not to {name}")
        if name == "folder" and (split or data):
            raise MaskCLIPError("folder takes no --split and no --data: give --images and --masks")
        return opt.open_data(
            name, data=data, split=split or "val", images=images, masks=masks, classes=classes
        )
    from maskclip.emoji.scenes import SCENE_SIZE, EmojiScenes

    if split not in (None, "val") or any((data, images, masks, classes)):
        raise MaskCLIPError(
            "emoji is drawn and has only the split val: leave out --split, --data, --images, "
            "--masks and --classes"
        )
    return EmojiScenes(size=size or SCENE_SIZE)


def show_notes(samples: Samples) -> None:
    """Warn of what users should know about samples."""
    from maskclip.cli.console import warning_line
    from maskclip.data.photos import Photos

    for note in samples.notes:
        warning_line(note)
    if isinstance(samples, Photos):
        opt.warn_of_unused(samples.unused_masks())


def warn_of_count(samples: Samples, count: int) -> None:
    """Warn where scores are of fewer images than the published ones."""
    from maskclip.cli.console import warning_line

    if samples.official not in (None, count):
        listed = f" of the {len(samples):,} listed" if count < len(samples) else ""
        warning_line(
            f"{count:,} images{listed}, but {samples.name} {samples.split} officially has "
            f"{samples.official:,}: these scores are of the {count:,} alone, and not comparable "
            "with published ones"
        )
