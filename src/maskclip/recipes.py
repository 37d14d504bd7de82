"""Every published row, by name: what to run, and what the authors measured.

A recipe is named `<dataset>-<teacher>`, with the corruption behind it where there is one, and runs
as `maskclip eval --recipe NAME --data ROOT`. The figures are mIoU in percent, from the result
tables of the authors' repository; those marked "paper" are in the paper alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from maskclip.core.errors import MaskCLIPError
from maskclip.data.corruptions import Corruption
from maskclip.tasks.evaluation import Evaluation
from maskclip.tasks.options import Options

TEACHERS = {"rn50": "RN50:openai", "rn50x16": "RN50x16:openai", "vitb16": "ViT-B-16:openai"}

KS_PD = Options(key_smoothing=1.0, prompt_denoising=0.5)
"""Key smoothing and prompt denoising with the paper's thresholds."""


@dataclass(frozen=True)
class Row:
    """A published figure.

    Attributes:
        evaluation: what was measured.
        miou: in percent.
        source: where it is published.
        corruption: under which it was measured.
    """

    evaluation: Evaluation
    miou: float
    source: str = "authors' repository"
    corruption: Corruption | None = None

    @property
    def name(self) -> str:
        """What users type."""
        teacher = next(name for name, model in TEACHERS.items() if model == self.evaluation.model)
        parts = [self.evaluation.dataset, teacher]
        if self.corruption is not None:
            parts += [self.corruption.name.replace("_", "-"), str(self.corruption.severity)]
        return "-".join(parts)


def _row(dataset: str, teacher: str, miou: float) -> Row:
    evaluation = Evaluation(
        dataset=dataset, model=TEACHERS[teacher], method="published", protocol="published"
    )
    return Row(evaluation, miou)


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

RECIPES = {row.name: row for row in _PLAIN}
"""The rows that run by name."""


def _refined(name: str, miou: float) -> Row:
    return Row(replace(RECIPES[name].evaluation, options=KS_PD), miou, "paper")


def _baseline(name: str, miou: float) -> Row:
    return Row(replace(RECIPES[name].evaluation, method="baseline"), miou, "paper")


ROWS = (
    *_PLAIN,
    _refined("context59-rn50", 21.8),
    _refined("context59-vitb16", 25.5),
    _refined("cocostuff171-rn50", 12.8),
    _refined("cocostuff171-vitb16", 14.6),
    _baseline("context59-vitb16", 9.0),
    _baseline("cocostuff171-vitb16", 4.3),
)
"""All published figures: a recipe with the paper's refinement or with its baseline is one too."""


def get_recipe(name: str) -> Row:
    """Return the recipe of that name.

    Raises:
        MaskCLIPError: names those that there are.
    """
    if name not in RECIPES:
        raise MaskCLIPError(
            f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)} (`maskclip recipes`)"
        )
    return RECIPES[name]


def published_row(evaluation: Evaluation, corruption: Corruption | None) -> Row | None:
    """Return the published row that measured the same, whatever file the weights come from.

    None where there is no such row, or the weights are random.
    """
    if evaluation.weights == "random":
        return None
    model = evaluation.model if ":" in evaluation.model else f"{evaluation.model}:openai"
    same = replace(evaluation, model=model, weights=None, precision="float32")
    matching = (row for row in ROWS if (row.evaluation, row.corruption) == (same, corruption))
    return next(matching, None)
