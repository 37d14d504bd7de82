"""What is to be measured, in values: quick to import, so that mistakes are told at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from maskclip.core.config import Options
from maskclip.core.method import get_method
from maskclip.core.samples import Samples
from maskclip.core.vocabulary import Background
from maskclip.data.corruptions import Corruption
from maskclip.tasks.evaluation.protocols import check_protocol


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that decides the figures of a model on a data set; which machine runs it does not.

    Attributes:
        dataset, split: what is measured on.
        model: as `maskclip.load` takes it.
        weights: a local file, or `"random"`; None is the model's own.
        method: `"clean"`, `"published"` or `"baseline"`.
        protocol: of `tasks.protocols.PROTOCOLS`.
        templates: prompt templates.
        options: refinement; sizes and windows too where the protocol leaves them open.
        background: replaces the background rule of a vocabulary that has one.
        precision: of the image tower.
    """

    dataset: str
    split: str = "val"
    model: str
    weights: str | None = None
    method: str = "clean"
    protocol: str = "published"
    templates: str = "published"
    options: Options = field(default_factory=Options)
    background: Background | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        get_method(self.method)
        check_protocol(self.protocol)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Which images one measurement sees.

    Attributes:
        corruption: done to every image; None leaves them as they are.
        seed: of the corruption's random numbers.
        limit: the first so many images only.
    """

    corruption: Corruption | None = None
    seed: int = 0
    limit: int | None = None

    def count(self, samples: Samples) -> int:
        """Return the number of images of a data set that are seen."""
        return len(samples) if self.limit is None else min(self.limit, len(samples))
