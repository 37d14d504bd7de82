"""What a training and its validation load, index by index.

A training loads steps x batch size samples. Which image has an index, and how it is augmented,
depends on the seed and the index alone, and on the classes of images that are drawn evenly by them:
workers, processes and interruptions change nothing. In place of an image that cannot be read comes
the next of its epoch, or of its class, that can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from maskclip.core.errors import MaskCLIPError
from maskclip.core.prefetch import prefetch, usable_cpus
from maskclip.core.resize import fit_within
from maskclip.core.samples import UNLABELED, Ids, Samples
from maskclip.data.transforms import Place, augment, seeded
from maskclip.plus.balance import Classes, EvenOrder
from maskclip.plus.config import Optimization, Training, TrainingError

_CHEAP_BYTES = 128 * 2**20  # of all images: what is decoded in some seconds
_CHEAP_IMAGES = 2000
_IN_A_ROW = 100  # images that cannot be read: then it is not the images
_NOTHING = 32  # px: side of what is validated in place of an image that cannot be read


class Skipped(NamedTuple):
    """An image that could not be read: its name, and why."""

    name: str
    reason: str


class Batch(NamedTuple):
    """What one step learns from.

    Attributes:
        images: (b, 3, h, w) uint8.
        labels: (b, h, w) int64.
        skipped: the images that could not be read, in whose place others are.
        photos: of each image the whole photo, (3, H, W) uint8, where the teacher sees that.
        places: where the images lie in them.
    """

    images: Tensor
    labels: Tensor
    skipped: tuple[Skipped, ...] = ()
    photos: tuple[Tensor, ...] = ()
    places: tuple[Place, ...] = ()


def training_loader(
    dataset: TrainingDataset,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    steps_done: Callable[[], int] = lambda: 0,
) -> DataLoader[Batch]:
    """Return the batches of one process.

    Args:
        dataset: the samples of all processes.
        rank, world_size: which process this is, of how many that share each batch.
        workers: processes that load and augment images.
        pin_memory: as PyTorch's loader takes it; for GPUs.
        steps_done: called when iteration starts, which is after so many steps.
    """
    optimization = dataset.optimization
    return DataLoader(
        dataset,
        batch_size=optimization.batch_size // world_size,
        sampler=TrainingSampler(
            optimization, rank=rank, world_size=world_size, steps_done=steps_done
        ),
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=_collate,
    )


def _collate(batch: Sequence[Batch]) -> Batch:
    return Batch(
        torch.stack([sample.images for sample in batch]),
        torch.stack([sample.labels for sample in batch]),
        tuple(skipped for sample in batch for skipped in sample.skipped),
        tuple(photo for sample in batch for photo in sample.photos),
        tuple(place for sample in batch for place in sample.places),
    )


def check_readable(samples: Samples) -> None:
    """Read all samples where that takes some seconds; of many or large ones it would take hours.

    Raises:
        TrainingError: some cannot be read; the message names the first.
    """
    count = len(samples)
    if count > _CHEAP_IMAGES or not samples.paths(0):
        return
    if sum(size for index in range(count) for size in file_sizes(samples, index)) > _CHEAP_BYTES:
        return

    def problem(index: int) -> str | None:
        try:
            samples[index]
        except (MaskCLIPError, OSError) as error:
            return str(error)
        return None

    cpus = min(8, usable_cpus())
    problems = prefetch(ThreadPoolExecutor(cpus), problem, range(count), ahead=2 * cpus)
    broken = [found for found in problems if found is not None]
    if broken:
        rest = f" (and {len(broken) - 1:,} more of {count:,})" if len(broken) > 1 else ""
        raise TrainingError(f"{broken[0]}{rest}: mend it, or take it out")


def file_sizes(samples: Samples, index: int) -> tuple[int, ...]:
    """Return the bytes of the files of a sample; 0 of one that is missing."""
    sizes = []
    for path in samples.paths(index):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            sizes.append(0)
    return tuple(sizes)


def validation_loader(
    samples: Samples,
    scale: tuple[int, int],
    *,
    most: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Batch]:
    """Return the images of one process, one by one, as `ValidationDataset` has them.

    Every process has as many, for they wait for each other: some may have one that does not count.

    Args:
        samples: images with labels.
        scale: (long, short) side in px that images are fitted into.
        most: of the images, of all processes together; None takes all.
        rank, world_size: which process this is, of how many that share the images.
    """
    count = len(samples) if most is None else min(most, len(samples))
    most_each = -(-count // world_size)
    own: list[int | None] = list(range(rank, count, world_size))
    own += [None] * (most_each - len(own))
    dataset = ValidationDataset(samples, own, scale)
    return DataLoader(dataset, batch_size=None, num_workers=0)


class TrainingDataset(Dataset[Batch]):
    """The augmented samples of a training.

    Args:
        samples: the images, with labels or without.
        training: its seed, augmentation, and classes whose labels are hidden.
        places: for each image that the training began with, in their order, its index among the
            samples, or None where it is gone; None stands for all samples as they are.
        classes: of each of these images, by which they are drawn evenly; None draws each once an
            epoch.
    """

    def __init__(
        self,
        samples: Samples,
        training: Training,
        *,
        places: Sequence[int | None] | None = None,
        classes: Classes | None = None,
    ) -> None:
        self.samples = samples
        self.places = range(len(samples)) if places is None else places
        self.augmentation = training.augmentation
        config = training.supervision
        self.hidden = () if config.keep_labels else config.unlabeled
        self.photo_side = config.teacher_short_side
        self.optimization = training.optimization
        self.seed = training.optimization.seed
        self.length = training.optimization.steps * training.optimization.batch_size
        self.even = None if classes is None else EvenOrder(classes, seed=self.seed)
        self._order: tuple[int, Ids] | None = None  # of the latest epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        """Return an image (3, h, w) uint8, its labels (h, w) int64, and what was skipped before it.

        Where nothing can be read, nothing of the image counts.
        """
        skipped: list[Skipped] = []
        ignore = self.samples.vocabulary.ignore
        for place in self._candidates(index):
            try:
                sample = self.samples[place]
            except (MaskCLIPError, OSError) as error:
                skipped.append(Skipped(self.samples.names[place], str(error)))
                if len(skipped) == _IN_A_ROW:
                    break
                continue
            pixels, labels, place_in_photo = augment(
                sample.image,
                hide(sample.labels, self.hidden),
                self.augmentation,
                generator=seeded(self.seed, index),
                ignore=ignore,
            )
            photos, places = self._whole(sample.image), (place_in_photo,)
            return Batch(pixels, labels, tuple(skipped), photos, places[: len(photos)])
        crop = self.augmentation.crop
        empty = torch.zeros((3, *crop), dtype=torch.uint8)
        photos, places = (empty,), (Place(0.0, 0.0, 1.0, 1.0, False),)
        kept = 0 if self.photo_side is None else 1
        return Batch(empty, torch.full(crop, ignore), tuple(skipped), photos[:kept], places[:kept])

    def _whole(self, image: Image.Image) -> tuple[Tensor, ...]:
        """Return the photo as the teacher sees it, if it sees it whole."""
        side = self.photo_side
        if side is None:
            return ()
        height, width = fit_within((image.height, image.width), short=side, long=4 * side)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return (torch.from_numpy(np.array(resized)).permute(2, 0, 1),)

    def sample_at(self, index: int) -> int | None:
        """Return which sample has an index, None where it is gone."""
        return self.places[next(self._numbers(index))]

    def _candidates(self, index: int) -> Iterator[int]:
        """Yield the sample of an index, then those that may take its place: the next ones."""
        for number in self._numbers(index):
            place = self.places[number]
            if place is not None:
                yield place

    def _numbers(self, index: int) -> Iterator[int]:
        """Yield numbers of images: each once per epoch, every epoch in a new order; or evenly."""
        if self.even is not None:
            yield from self.even.candidates(index)  # then any, where all of these are gone
        count = len(self.places)
        epoch, offset = divmod(index, count)
        order = self._order_of(epoch)
        for ahead in range(count):
            yield int(order[(offset + ahead) % count])

    def _order_of(self, epoch: int) -> Ids:
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.places))
            self._order = (epoch, order)
        return self._order[1]


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


class ValidationDataset(Dataset[Batch]):
    """Images at the published test size, with their true labels at the size of the file.

    Args:
        samples: images with labels.
        indices: those of this process; None stands for an image of which nothing counts.
        scale: (long, short) side in px that images are fitted into.
    """

    def __init__(
        self, samples: Samples, indices: Sequence[int | None], scale: tuple[int, int]
    ) -> None:
        self.samples = samples
        self.indices = indices
        self.long, self.short = scale

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Batch:
        """Return an image (1, 3, h, w) uint8 and its labels (H, W) int64.

        Nothing of one that cannot be read counts.
        """
        place = self.indices[index]
        if place is None:
            return self._nothing()
        try:
            sample = self.samples[place]
        except (MaskCLIPError, OSError) as error:
            return self._nothing(Skipped(self.samples.names[place], str(error)))
        size = (sample.image.height, sample.image.width)
        height, width = fit_within(size, short=self.short, long=self.long)
        image = sample.image.resize((width, height), Image.Resampling.BICUBIC)
        truth = sample.labels.astype(np.int64)
        truth[truth == UNLABELED] = self.samples.vocabulary.ignore
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        return Batch(pixels, torch.from_numpy(truth))

    def _nothing(self, *skipped: Skipped) -> Batch:
        side = _NOTHING
        pixels = torch.zeros((1, 3, side, side), dtype=torch.uint8)
        return Batch(pixels, torch.full((side, side), self.samples.vocabulary.ignore), skipped)


def hide(labels: Ids, classes: Sequence[int]) -> Ids:
    """Return labels (H, W) int64 in which some classes are UNLABELED (published code, P5)."""
    wide = labels.astype(np.int64)
    return np.where(np.isin(wide, classes), UNLABELED, wide)
