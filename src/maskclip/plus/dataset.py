"""What a training sees, position by position: the same for any number of workers and processes.

A stream has steps x batch positions. Which sample lies at a position, and how it is augmented,
hangs on the seed and the position alone, so that a training goes on exactly where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from maskclip.core.samples import UNLABELED, Ids, Samples
from maskclip.core.vocabulary import IGNORE
from maskclip.data.augmentation import Augmentation
from maskclip.data.transforms import augment, seeded


class Stream(Dataset[tuple[Tensor, Tensor]]):
    """The augmented samples of a training, by position.

    Args:
        samples: the data set.
        augmentation: how much each sample changes, with random numbers of its position.
        unlabeled: ids of classes whose pixels become UNLABELLED.
        seed: of the order and the augmentation.
        length: positions in all.
    """

    def __init__(
        self,
        samples: Samples,
        augmentation: Augmentation,
        *,
        unlabeled: Sequence[int],
        seed: int,
        length: int,
    ) -> None:
        self.samples = samples
        self.augmentation = augmentation
        self.unlabeled = tuple(unlabeled)
        self.seed = seed
        self.length = length
        self._order: tuple[int, Ids] | None = None  # that of the epoch which was asked for last

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        """Return an image (3, h, w) uint8 and its labels (h, w) int64.

        Raises:
            MaskCLIPError: the files of the sample cannot be used.
        """
        sample = self.samples[self.index_at(position)]
        labels = suppress(sample.labels, self.unlabeled, ignore=self.samples.vocabulary.ignore)
        generator = seeded(self.seed, position)
        return augment(sample.image, labels, self.augmentation, generator=generator)

    def index_at(self, position: int) -> int:
        """Return which sample lies at a position: every one once, in a new order, then again."""
        count = len(self.samples)
        epoch, place = divmod(position, count)
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(count)
            self._order = (epoch, order)
        return int(self._order[1][place])


class StreamSampler(Sampler[int]):
    """The positions of one process, from the step on that the training has reached.

    Its length is that of the whole training, whatever step it starts at: what counts batches then
    agrees between an unbroken training and one that goes on.

    Args:
        steps: of the whole training.
        batch: samples a step, of all processes together.
        rank, world: which process this is, of how many.
        reached: returns the steps that are done when it is iterated.
    """

    def __init__(
        self, *, steps: int, batch: int, rank: int, world: int, reached: Callable[[], int]
    ) -> None:
        self.steps = steps
        self.batch = batch
        self.rank = rank
        self.world = world
        self.reached = reached

    def __len__(self) -> int:
        return self.steps * self.batch // self.world

    def __iter__(self) -> Iterator[int]:
        first = self.reached() * self.batch + self.rank
        return iter(range(first, self.steps * self.batch, self.world))


def suppress(labels: Ids, classes: Sequence[int], *, ignore: int) -> Ids:
    """Return labels (H, W) int64 without those of some classes, which become UNLABELLED (P5).

    Args:
        labels: class ids, or `ignore`, which becomes IGNORE.
        classes: whose labels are not to be seen.
        ignore: the label that does not count.
    """
    wide = labels.astype(np.int64)
    kept = np.where(np.isin(wide, classes), UNLABELED, wide)
    return np.where(wide == ignore, IGNORE, kept)
