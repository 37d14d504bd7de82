"""What a training and its validation load, index by index.

A training loads steps x batch size samples. Which image has an index, and how it is augmented,
depends on the seed and the index alone: workers, processes and interruptions change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from maskclip.core.resize import fit_within
from maskclip.core.samples import UNLABELED, Ids, Samples
from maskclip.data.transforms import augment, seeded
from maskclip.plus.config import Optimization, Training


def training_loader(
    samples: Samples,
    training: Training,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    steps_done: Callable[[], int] = lambda: 0,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return the batches of one process: images (b, 3, h, w) uint8, labels (b, h, w) int64.

    Args:
        samples: the images, with labels or without.
        training: its seed, augmentation, and classes whose labels are hidden.
        rank, world_size: which process this is, of how many that share each batch.
        workers: processes that load and augment images.
        pin_memory: as PyTorch's loader takes it; for GPUs.
        steps_done: called when iteration starts, which is after so many steps.
    """
    optimization = training.optimization
    return DataLoader(
        TrainingDataset(samples, training),
        batch_size=optimization.batch_size // world_size,
        sampler=TrainingSampler(
            optimization, rank=rank, world_size=world_size, steps_done=steps_done
        ),
        num_workers=workers,
        pin_memory=pin_memory,
    )


def validation_loader(
    samples: Samples,
    scale: tuple[int, int],
    *,
    most: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return the images of one process, one by one, as `ValidationDataset` has them.

    Args:
        samples: images with labels.
        scale: (long, short) side in px that images are fitted into.
        most: of the images, of all processes together; None takes all.
        rank, world_size: which process this is, of how many that share the images.
    """
    count = len(samples) if most is None else min(most, len(samples))
    dataset = ValidationDataset(samples, range(rank, count, world_size), scale)
    return DataLoader(dataset, batch_size=None, num_workers=0)


class TrainingDataset(Dataset[tuple[Tensor, Tensor]]):
    """The augmented samples of a training.

    Args:
        samples: the images, with labels or without.
        training: its seed, augmentation, and classes whose labels are hidden.
    """

    def __init__(self, samples: Samples, training: Training) -> None:
        self.samples = samples
        self.augmentation = training.augmentation
        config = training.supervision
        self.hidden = () if config.keep_labels else config.unlabeled
        self.seed = training.optimization.seed
        self.length = training.optimization.steps * training.optimization.batch_size
        self._order: tuple[int, Ids] | None = None  # of the latest epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image (3, h, w) uint8 and its labels (h, w) int64.

        Raises:
            MaskCLIPError: the files of the sample cannot be used.
        """
        sample = self.samples[self.sample_at(index)]
        return augment(
            sample.image,
            hide(sample.labels, self.hidden),
            self.augmentation,
            generator=seeded(self.seed, index),
            ignore=self.samples.vocabulary.ignore,
        )

    def sample_at(self, index: int) -> int:
        """Return which sample has an index: each once per epoch, every epoch in a new order."""
        count = len(self.samples)
        epoch, offset = divmod(index, count)
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(count)
            self._order = (epoch, order)
        return int(self._order[1][offset])


class TrainingSampler(Sampler[int]):
    """The indices of one process, starting after the steps that are done.

    Its length is always that of the whole training, so that counts of batches agree between an
    unbroken training and a resumed one.

    Args:
        optimization: the number of steps and the batch size, of all processes together.
        rank, world_size: which process this is, of how many.
        steps_done: called when iteration starts.
    """

    def __init__(
        self,
        optimization: Optimization,
        *,
        rank: int,
        world_size: int,
        steps_done: Callable[[], int],
    ) -> None:
        self.batch_size = optimization.batch_size
        self.total = optimization.steps * optimization.batch_size
        self.rank = rank
        self.world_size = world_size
        self.steps_done = steps_done

    def __len__(self) -> int:
        return self.total // self.world_size

    def __iter__(self) -> Iterator[int]:
        first = self.steps_done() * self.batch_size + self.rank
        return iter(range(first, self.total, self.world_size))


class ValidationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images at the published test size, with their true labels at the size of the file.

    Args:
        samples: images with labels.
        indices: those of this process.
        scale: (long, short) side in px that images are fitted into.
    """

    def __init__(self, samples: Samples, indices: Sequence[int], scale: tuple[int, int]) -> None:
        self.samples = samples
        self.indices = indices
        self.long, self.short = scale

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image (1, 3, h, w) uint8 and its labels (H, W) int64."""
        sample = self.samples[self.indices[index]]
        size = (sample.image.height, sample.image.width)
        height, width = fit_within(size, short=self.short, long=self.long)
        image = sample.image.resize((width, height), Image.Resampling.BICUBIC)
        truth = sample.labels.astype(np.int64)
        truth[truth == UNLABELED] = self.samples.vocabulary.ignore
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None], torch.from_numpy(truth)


def hide(labels: Ids, classes: Sequence[int]) -> Ids:
    """Return labels (H, W) int64 in which some classes are UNLABELED (published code, P5)."""
    wide = labels.astype(np.int64)
    return np.where(np.isin(wide, classes), UNLABELED, wide)
