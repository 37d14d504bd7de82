"""Published figures of ViT-B/16 under the protocol `windows`: a column a method, mIoU in percent.

Where a figure is from is part of it: of the same method, papers print others. Cells that no source
at hand gives are missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DATASETS = {
    "voc21": "V21",
    "context60": "C60",
    "cocoobject81": "Obj",
    "voc20": "V20",
    "context59": "C59",
    "cocostuff171": "Stuff",
    "cityscapes19": "City",
    "ade150": "ADE",
}
"""The benchmarks in the order of the papers' tables, and how tables head them."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one source prints for one method.

    Attributes:
        method: its name here.
        source: where the figures are printed.
        by: who ran it: the method's authors, later authors, who ran it again or listed it, or the
            note of others on a paper that was not at hand.
        figures: by data set.
        refine: the refinement that is part of it.
    """

    method: str
    source: str
    by: Literal["authors", "later authors", "second hand"]
    figures: dict[str, float]
    refine: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The method and its refinements, as names of recipes have them."""
        return "-".join((self.method, *self.refine))

    @property
    def mean(self) -> float | None:
        """The mean over all eight data sets; None where a cell is missing."""
        complete = len(self.figures) == len(DATASETS)
        return sum(self.figures.values()) / len(DATASETS) if complete else None


def _all(*figures: float) -> dict[str, float]:
    return dict(zip(DATASETS, figures, strict=True))


COLUMNS = (
    Column(
        method="baseline",
        source="PEARL's table",
        by="later authors",
        figures=_all(18.6, 7.8, 6.5, 49.1, 11.2, 7.2, 6.7, 3.2),
    ),
    Column(
        method="clean",
        source="Trident's table",
        by="later authors",
        figures=_all(43.4, 23.2, 20.6, 74.9, 26.4, 16.7, 24.9, 11.9),
    ),
    Column(
        method="surgery",
        source="ResCLIP's table",
        by="later authors",
        figures={"context60": 29.3, "cocostuff171": 21.9, "cityscapes19": 31.4},
    ),
    Column(
        method="sclip",
        source="SCLIP's paper",
        by="authors",
        figures=_all(59.1, 30.4, 30.5, 80.4, 34.2, 22.4, 32.2, 16.1),
    ),
    Column(
        method="gem",
        source="ClearCLIP's table, at a short side of 448 px",
        by="later authors",
        figures={
            **{"voc21": 46.2, "voc20": 79.9, "context59": 35.9},
            **{"cocostuff171": 23.7, "cityscapes19": 30.8, "ade150": 15.7},
        },
    ),
    Column(
        method="clearclip",
        source="ClearCLIP's table, at a short side of 448 px",
        by="authors",
        figures=_all(51.8, 32.6, 33.0, 80.9, 35.9, 23.9, 30.0, 16.7),
    ),
    Column(
        method="naclip",
        source="NACLIP's paper",
        by="authors",
        figures=_all(58.9, 32.2, 33.2, 79.7, 35.2, 23.3, 35.5, 17.4),
    ),
    Column(
        method="naclip",
        refine=("pamr",),
        source="NACLIP's repository",
        by="authors",
        figures=_all(64.07, 34.99, 36.19, 83.03, 38.35, 25.69, 38.27, 19.05),
    ),
    Column(
        method="resclip",
        source="ResCLIP's table",
        by="authors",
        figures=_all(61.1, 33.5, 35.0, 86.0, 36.8, 24.7, 35.9, 18.0),
    ),
    Column(
        method="pearl",
        refine=("tlp",),
        source="PEARL's table",
        by="authors",
        figures=_all(64.1, 35.1, 37.3, 86.9, 38.6, 26.3, 37.6, 19.4),
    ),
    Column(
        method="scclip",
        source="a note on RF-CLIP's table",
        by="second hand",
        figures=_all(64.6, 36.8, 37.7, 84.3, 40.1, 26.6, 41.0, 20.1),
    ),
    Column(
        method="sfp",
        source="PEARL's table",
        by="later authors",
        figures=_all(56.8, 32.3, 32.1, 83.4, 36.0, 24.0, 34.1, 18.1),
    ),
)
"""The columns, by and large lowest first.

SCLIP's repository prints others for its own defaults: 59.63, 31.74, 33.52, 81.54, 34.46, 22.77,
32.34 and 16.45. `SOURCES` has other means for `baseline`, `gem` and `sfp`: no source at hand prints
the cells that they are of.
"""
