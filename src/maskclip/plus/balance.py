"""Class-balanced sampling: which classes each image shows, and images drawn evenly by them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import write_text
from maskclip.core.resize import fit_within
from maskclip.core.samples import UNLABELED, Sample, Samples
from maskclip.core.text import read_json
from maskclip.plus.config import TrainingError

Classes = Sequence[Sequence[int]]
"""Of each image, the classes that it shows."""

_LARGEST_FILE = 2**30  # bytes: 100 million classes
_LEAST_SHARE = 0.05  # of the assigned pixels: less is mostly noise


class EvenOrder:
    """The images of a training by index: in each round one of every class, in an order of its own.

    Each image of a class comes once before any of them comes again. What comes at an index depends
    on the seed and the index alone.

    Args:
        classes: those of each image; images without any are never drawn.
        seed: of the orders.

    Raises:
        TrainingError: no image shows any class.
    """

    def __init__(self, classes: Classes, *, seed: int) -> None:
        images: dict[int, list[int]] = {}
        for image, shown in enumerate(classes):
            for one in shown:
                images.setdefault(one, []).append(image)
        if not images:
            raise TrainingError(
                "`balance`: no class is seen in any image, so that none can be drawn by it; train "
                "without it, or lower the `confidence`"
            )
        self.images = [images[one] for one in sorted(images)]
        self.seed = seed

    def candidates(self, index: int) -> Iterator[int]:
        """Yield the image of an index, then the others of its class that may take its place."""
        turn, slot = divmod(index, len(self.images))
        # The last numbers of the keys keep these orders apart, from those of epochs too.
        order = np.random.default_rng((self.seed, turn, 1)).permutation(len(self.images))
        which = int(order[slot])
        images = self.images[which]
        lap, first = divmod(turn, len(images))
        order = np.random.default_rng((self.seed, which, lap, 2)).permutation(len(images))
        for ahead in range(len(images)):
            yield images[int(order[(first + ahead) % len(images)])]


def shown_classes(
    samples: Samples,
    complete: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]],
    *,
    short_side: int,
) -> list[list[int]]:
    """Return the classes that each image shows: all that are labelled, and what a teacher sees.

    Args:
        samples: the images; one that cannot be read shows nothing.
        complete: (1, 3, h, w) uint8 and labels (1, h, w) int64 -> the labels that may be learnt
            from, and these as the teacher completes them, if it does.
        short_side: at which the teacher sees images, in px.
    """
    found: list[list[int]] = []
    for index in range(len(samples)):
        try:
            sample = samples[index]
        except (MaskCLIPError, OSError):
            found.append([])
            continue
        given, completed = complete(*_fitted(sample, short_side))
        found.append(_classes_in(given, completed, ignore=samples.vocabulary.ignore))
    return found


def _fitted(sample: Sample, short_side: int) -> tuple[Tensor, Tensor]:
    """Return an image (1, 3, h, w) uint8 at a size, and its labels (1, h, w) int64."""
    size = (sample.image.height, sample.image.width)
    height, width = fit_within(size, short=short_side, long=4 * short_side)
    image = sample.image.resize((width, height), Image.Resampling.BICUBIC)
    rows, columns = (
        np.arange(now) * before // now for now, before in zip((height, width), size, strict=True)
    )
    labels = sample.labels[np.ix_(rows, columns)].astype(np.int64)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return pixels[None], torch.from_numpy(labels)[None]


def _classes_in(given: Tensor, completed: Tensor | None, *, ignore: int) -> list[int]:
    shown = set(_counted(given, ignore))
    if completed is not None:
        counts = _counted(completed[given == UNLABELED], ignore)
        least = _LEAST_SHARE * sum(counts.values())
        shown |= {one for one, count in counts.items() if count >= least}
    return sorted(shown)


def _counted(labels: Tensor, ignore: int) -> dict[int, int]:
    counts = torch.bincount(labels[(labels >= 0) & (labels != ignore)])
    return {one: int(counts[one]) for one in counts.nonzero().flatten().tolist()}


def write_classes(classes: Classes, path: Path) -> None:
    """Write what a resumed training reads again."""
    write_text(f"{json.dumps(classes)}\n", path)


def read_classes(path: Path, *, images: int, classes: int) -> list[list[int]]:
    """Read the classes of so many images, of so many classes.

    Raises:
        TrainingError: the file is not there, or holds something else.
    """
    try:
        shown = read_json(path, "the classes that images show", limit=_LARGEST_FILE)
    except (MaskCLIPError, OSError) as error:
        raise TrainingError(f"{path} cannot be read ({error}); choose another `out`") from error
    if not (
        isinstance(shown, list)
        and len(shown) == images
        and all(isinstance(each, list) for each in shown)
        and all(type(one) is int and 0 <= one < classes for each in shown for one in each)
    ):
        raise TrainingError(
            f"{path}: expected the classes of {images:,} images; choose another `out`"
        )
    return shown
