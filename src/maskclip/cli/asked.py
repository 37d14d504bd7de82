"""What `maskclip eval` was asked for, from what was typed; contradictions are refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskclip.cli import options as opt
from maskclip.core.errors import MaskCLIPError
from maskclip.data.specs import SPECS

if TYPE_CHECKING:
    from maskclip.core.samples import Samples
    from maskclip.core.vocabulary import Background
    from maskclip.recipes import Row
    from maskclip.tasks.evaluation.settings import Evaluation, Run

DATASETS = (*SPECS, "emoji", "folder")
ALL = "all"
"""The corruption that stands for a sweep of all of them."""


def dataset_name(dataset: str | None, row: Row | None) -> str:
    """Return the data set that is named, or a recipe's own."""
    if row is None:
        if dataset not in DATASETS:
            what = "no data set given" if dataset is None else f"unknown data set {dataset!r}"
            raise MaskCLIPError(f"{what}: expected one of {', '.join(DATASETS)}, or --recipe NAME")
        return dataset
    if dataset not in (None, row.evaluation.dataset):
        raise MaskCLIPError(f"the recipe {row.name} is of {row.evaluation.dataset}, not {dataset}")
    return row.evaluation.dataset


def check_sources(
    model: str | None, recipe: str | None, predictions: Path | None, *, of_models: bool
) -> None:
    """Refuse more than one source of predictions, and settings of models beside a folder."""
    if sum(source is not None for source in (model, recipe, predictions)) > 1:
        raise MaskCLIPError("give one of --model, --recipe and --predictions")
    if predictions is not None and of_models:
        raise MaskCLIPError(
            "--predictions are scored as they are: leave out what belongs to models (--method, "
            "--protocol, --key-smoothing ...) and --corruption"
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
    """Open a data set; options that do not belong to it are refused."""
    if name != "emoji":
        if size is not None:
            raise MaskCLIPError(f"--size belongs to `emoji`, not to {name}")
        if name == "folder" and (split or data):
            raise MaskCLIPError("folder has no --split and no --data: --images and --masks are all")
        return opt.open_data(
            name, data=data, split=split or "val", images=images, masks=masks, classes=classes
        )
    from maskclip.emoji.scenes import SCENE_SIZE, EmojiScenes

    if split not in (None, "val") or any((data, images, masks, classes)):
        raise MaskCLIPError(
            "emoji is drawn, and has the split val alone: leave out --split, --data, --images, "
            "--masks and --classes"
        )
    return EmojiScenes(size=size or SCENE_SIZE)


def read_run(row: Row | None, corruption: str | None, *, seed: int, limit: int | None) -> Run:
    """Return which images are seen, under which corruption; of a sweep, without any."""
    from maskclip.data.corruptions import Corruption
    from maskclip.tasks.evaluation.settings import Run

    if corruption is None:
        return Run(corruption=None if row is None else row.corruption, seed=seed, limit=limit)
    wanted = None if corruption == ALL else Corruption.parse(corruption)
    return Run(corruption=wanted, seed=seed, limit=limit)


def background_rule(text: str | None) -> Background | None:
    """Read `--background`; None where none was given."""
    if text is not None and text.strip().lower() == "none":
        raise MaskCLIPError(
            "--background none: what counts as background is scored, so the data sets that have "
            "it need a rule: words or a threshold"
        )
    return opt.read_background(text)


def read_evaluation(row: Row | None, dataset: str, **given: Any) -> Evaluation:
    """Return what is measured: the recipe's settings or the defaults, under those given."""
    from dataclasses import replace

    from maskclip.core.config import DEFAULT_MODEL
    from maskclip.tasks.evaluation.settings import Evaluation

    own = dataset in ("emoji", "folder")
    base = Evaluation(
        dataset=dataset,
        model="emoji" if dataset == "emoji" else DEFAULT_MODEL,
        protocol="segment" if own else "published",
    )
    chosen = {key: value for key, value in given.items() if value is not None}
    return replace(base if row is None else row.evaluation, **chosen)
