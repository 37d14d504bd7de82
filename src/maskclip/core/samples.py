"""Images with their ground truth, and the interface of data sets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskclip.core.vocabulary import Vocabulary

Ids = npt.NDArray[np.integer]

UNLABELED = -1
"""The label of pixels that are yet to be labelled by a teacher."""


@dataclass(frozen=True, eq=False)
class Sample:
    """An image with its ground truth.

    Attributes:
        name: its id within the data set.
        image: RGB, W x H.
        labels: (H, W) class ids, the ignored one, or UNLABELED.
    """

    name: str
    image: Image.Image
    labels: Ids


@dataclass(frozen=True, eq=False, kw_only=True)
class Samples(Sequence[Sample], ABC):
    """A split of a data set; samples are read on access, from any thread.

    Attributes:
        name, split: what users type.
        vocabulary: its classes.
        official: the official number of samples; None if there is none.
        unseen: ids of the unseen classes of the zero-shot split.
        scale: (long, short) side of the published test size in px (published code, S3).
        windows_short: short side in px under the sliding-window protocol.
    """

    name: str
    split: str
    vocabulary: Vocabulary
    official: int | None = None
    unseen: tuple[int, ...] = ()
    scale: tuple[int, int] = (2048, 512)
    windows_short: int = 336

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """The ids of the samples, in order."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        """Read a sample.

        Raises:
            MaskCLIPError: its files cannot be used.
        """

    def __len__(self) -> int:
        return len(self.names)

    def paths(self, index: int) -> tuple[Path, ...]:
        """Return the files that a sample is read from; none where it is drawn."""
        return ()

    def check(self, count: int) -> None:  # subclasses check what can be missing
        """Check that the first `count` samples exist, before any is used.

        Raises:
            MaskCLIPError: some are not.
        """

    @property
    def notes(self) -> Sequence[str]:
        """What users should know about these samples, one line each."""
        return ()

    def metadata(self) -> dict[str, Any]:
        """Return which samples these are, ready for JSON."""
        return {"dataset": self.name, "split": self.split, "official_images": self.official}
