"""The best and the worst images of a measurement, kept small, to be looked at."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from maskclip.core.metrics import Scores
from maskclip.core.samples import Ids, Sample
from maskclip.tasks.evaluation.contact_sheet import Example, shrunk
from maskclip.tasks.evaluation.processes import Processes

EXAMPLES = 6
"""Best and worst images kept, of each."""

_EXAMPLE_SIDE = 320  # px: enough to be seen, little to be kept and sent between processes


class Extremes:
    """The best and the worst images seen, small."""

    def __init__(self) -> None:
        self.best: list[Example] = []
        self.worst: list[Example] = []

    def watch(self, sample: Sample, prediction: Ids, alone: Scores) -> None:
        """Keep a sample if it is among the best or the worst; one without labels is neither."""
        example = Example(
            sample.name, alone.miou, sample.image, sample.labels, np.asarray(prediction)
        )
        if not math.isnan(example.miou) and (
            _enters(example, self.best, _best_first) or _enters(example, self.worst, _worst_first)
        ):
            self.add(shrunk(example, _EXAMPLE_SIDE))

    def add(self, example: Example) -> None:
        """Put an example where it belongs, if anywhere."""
        self.best = sorted([*self.best, example], key=_best_first)[:EXAMPLES]
        self.worst = sorted([*self.worst, example], key=_worst_first)[:EXAMPLES]

    def of_all(self, processes: Processes) -> tuple[list[Example], list[Example]]:
        """Return the best and the worst images of all processes; none is both."""
        total = Extremes()
        for best, worst in processes.gather((self.best, self.worst)):
            for example in {example.name: example for example in (*best, *worst)}.values():
                total.add(example)
        best_names = {example.name for example in total.best}
        return total.best, [one for one in total.worst if one.name not in best_names]


# Names settle ties, so that the order in which images were seen does not matter.
def _best_first(example: Example) -> tuple[float, str]:
    return -example.miou, example.name


def _worst_first(example: Example) -> tuple[float, str]:
    return example.miou, example.name


def _enters(
    example: Example, kept: list[Example], rank: Callable[[Example], tuple[float, str]]
) -> bool:
    return len(kept) < EXAMPLES or rank(example) < rank(kept[-1])
