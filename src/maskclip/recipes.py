"""The published results by name: the settings to run, and the scores that the authors report.

A recipe is named `<dataset>-<model>`, followed by its corruption if it has one, and runs as
`maskclip eval --recipe NAME --data ROOT`. Scores are mIoU in percent, from the result tables of the
authors' repository; those with the source "paper" are only in the paper.

Those of later methods are named `<dataset>-<method>-vitb16`, with the refinement after the method
where one is part of it (`voc21-naclip-pamr-vitb16`), and run under the protocol `windows`. Their
figures, and who printed them, are in `tasks.evaluation.figures`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from maskclip.core.config import ModelConfig, Options
from maskclip.core.errors import MaskCLIPError, did_you_mean
from maskclip.core.methods import AUTO, get_method, method_name
from maskclip.data.corruptions import Corruption
from maskclip.tasks.evaluation.figures import COLUMNS, Column
from maskclip.tasks.evaluation.settings import Evaluation, default_templates

TEACHERS = {"rn50": "RN50:openai", "rn50x16": "RN50x16:openai", "vitb16": "ViT-B-16:openai"}

KS_PD = Options(key_smoothing=1.0, prompt_denoising=0.5)
"""Key smoothing and prompt denoising with the paper's thresholds."""


@dataclass(frozen=True)
class Row:
    """A published result of zero-shot CLIP.

    Attributes:
        evaluation: its settings.
        miou: in percent.
        source: where it is published.
        corruption: of the images; None if they were clean.
    """

    evaluation: Evaluation
    miou: float
    source: str = "authors' repository"
    corruption: Corruption | None = None

    @property
    def name(self) -> str:
        """What users type."""
        model = self.evaluation.model
        parts = [self.evaluation.dataset]
        if self.evaluation.protocol == "windows":
            parts += [method_name(model.method), *self.evaluation.options.refine]
        parts.append(next(key for key in TEACHERS if TEACHERS[key] == model.name))
        if self.corruption is not None:
            parts += [self.corruption.name.replace("_", "-"), str(self.corruption.severity)]
        return "-".join(parts)


def _row(dataset: str, teacher: str, miou: float) -> Row:
    model = ModelConfig(name=TEACHERS[teacher], method="published", precision="float32")
    return Row(Evaluation(dataset=dataset, model=model, protocol="published"), miou)


_PLAIN = (
    _row("voc20", "rn50", 41.5),
    _row("voc20", "rn50x16", 50.9),
    _row("voc20", "vitb16", 49.5),
    _row("context59", "rn50", 18.5),
    _row("context59", "rn50x16", 20.3),
    _row("context59", "vitb16", 21.7),
    _row("cocostuff171", "rn50", 10.2),
    _row("cocostuff171", "rn50x16", 13.6),
    _row("cocostuff171", "vitb16", 12.5),
    replace(_row("voc20", "rn50", 30.9), corruption=Corruption("speckle_noise", 1)),
)


def _later(column: Column) -> Iterator[Row]:
    """Yield the rows of a later method, which its papers run in windows."""
    protocol = "windows"
    model = ModelConfig(
        name=TEACHERS["vitb16"],
        method=column.method,
        templates=default_templates(protocol),
        precision="float32",
    )
    options = Options(refine=column.refine)
    for dataset, miou in column.figures.items():
        evaluation = Evaluation(dataset=dataset, model=model, protocol=protocol, options=options)
        yield Row(evaluation, miou, f"{column.source} ({column.by})")


_LATER = tuple(row for column in COLUMNS for row in _later(column))

RECIPES = {row.name: row for row in (*_PLAIN, *_LATER)}
"""The published results that run by name."""


def _embedded(model: str, method: str, miou: float) -> Row:
    config = ModelConfig(name=model, method=method, precision="float32")
    evaluation = Evaluation(dataset="emoji", model=config, protocol="segment")
    return Row(evaluation, miou, "docs/results.md")


EMBEDDED = {
    "emoji-rn": _embedded("emoji-rn", "clean", 67.0),
    "emoji-vit": _embedded("emoji-vit", "clean", 55.8),
    "emoji-rn-published": _embedded("emoji-rn", "published", 58.4),
    "emoji-vit-published": _embedded("emoji-vit", "published", 48.9),
}
"""What this project measured of the embedded models: figures that any machine can check."""

REPRODUCIBLE = {**EMBEDDED, **RECIPES}
"""The rows of `maskclip reproduce`, by name."""


def _refined(evaluation: Evaluation) -> Evaluation:
    return replace(evaluation, options=KS_PD)


def _baseline(evaluation: Evaluation) -> Evaluation:
    return replace(evaluation, model=replace(evaluation.model, method="baseline"))


ROWS = (
    *RECIPES.values(),
    Row(_refined(RECIPES["context59-rn50"].evaluation), 21.8, "paper"),
    Row(_refined(RECIPES["context59-vitb16"].evaluation), 25.5, "paper"),
    Row(_refined(RECIPES["cocostuff171-rn50"].evaluation), 12.8, "paper"),
    Row(_refined(RECIPES["cocostuff171-vitb16"].evaluation), 14.6, "paper"),
    Row(_baseline(RECIPES["context59-vitb16"].evaluation), 9.0, "paper"),
    Row(_baseline(RECIPES["cocostuff171-vitb16"].evaluation), 4.3, "paper"),
)
"""All published results: the recipes, and some of them with refinement or as the baseline."""


def get_recipe(name: str) -> Row:
    """Return the recipe of that name.

    Raises:
        MaskCLIPError: unknown; the message lists the known ones.
    """
    if name not in RECIPES:
        raise MaskCLIPError(
            f"unknown recipe {name!r}{did_you_mean(name, RECIPES)}: `maskclip recipes` lists them"
        )
    return RECIPES[name]


def published_row(evaluation: Evaluation, corruption: Corruption | None) -> Row | None:
    """Return the published result of the same settings, None if there is none.

    Neither the precision nor the file of the weights is compared; random weights match nothing.
    """
    if evaluation.model.weights == "random" or evaluation.model.method == AUTO:
        return None
    wanted = _comparable(evaluation)
    matching = (
        row
        for row in ROWS
        if row.corruption == corruption and _comparable(row.evaluation) == wanted
    )
    return next(matching, None)


def _comparable(evaluation: Evaluation) -> Evaluation:
    model = evaluation.model
    return replace(
        evaluation,
        model=replace(
            model,
            name=model.name if ":" in model.name else f"{model.name}:openai",
            method=get_method(model.method),
            weights=None,
            precision="auto",
        ),
    )


def published_variants(row: Row) -> tuple[float | None, ...]:
    """Return the published mIoU of a recipe as it is, refined (`KS_PD`), and as the baseline."""
    variants = (row.evaluation, _refined(row.evaluation), _baseline(row.evaluation))
    found = [published_row(variant, row.corruption) for variant in variants]
    return tuple(None if one is None else one.miou for one in found)
