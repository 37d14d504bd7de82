"""One worker of a labelling: photos in, files out, and what there was in them.

Photos are read ahead in threads, the network has a thread of its own, and labels are enlarged,
cleaned and written in others.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from maskclip.core.cleaning import Cleaning, clean
from maskclip.core.config import DEFAULT_OPTIONS, Options
from maskclip.core.draw import Labels
from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats import Labeled, open_formats
from maskclip.data.images import MAX_PIXELS, load_image
from maskclip.tasks.label.manifest import Chunk, Found, LabelError, Outcome, Task
from maskclip.tasks.label.thumbnails import reduced, thumbnail_path, write_thumbnail
from maskclip.tasks.photos import (
    PhotoMaps,
    Size,
    batches_of,
    network_input,
    network_size,
    read_maps,
)
from maskclip.tasks.segmenter import load

_READERS = max(2, min(8, (os.cpu_count() or 2) // 2))
_WRITERS = _READERS
_WAITING = 2  # chunks whose files are being written while the network goes on

# Of one photo's own name, and no reason to stop the others.
_OF_THE_NAME = {
    errno.ENAMETOOLONG,
    errno.EILSEQ,
    errno.EINVAL,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,  # a file where a folder must be
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that decides the files of a labelling, but the photos; it can be sent to processes.

    Attributes:
        model, weights, templates, precision: as `load` takes them.
        vocabulary: the classes; None where the model is a student that carries its own.
        options: how images are cut and maps refined.
        cleaning: which labels are dropped.
        formats: names of `data.formats.FORMATS`.
        out: the folder of the results.
        max_pixels: larger images are refused.
    """

    model: str
    vocabulary: Vocabulary | None
    out: Path
    weights: str | None = None
    templates: str = "published"
    precision: str = "auto"
    options: Options = DEFAULT_OPTIONS
    cleaning: Cleaning = field(default_factory=Cleaning)
    formats: tuple[str, ...] = ("png",)
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True, eq=False)
class _Seen:
    """A photo that was read: its (H, W), what the network gets of it, and a small copy.

    The photo itself is let go: many wait for the network and for the writers.
    """

    task: Task
    size: Size
    pixels: Tensor
    small: Image.Image


class Labeler:
    """A model on a device, with the formats that its labels are written in.

    Args:
        job: what is done.
        device: as `load` takes it.

    Attributes:
        job: the same, with the classes and the precision that the model has found.
        fingerprint: a hash of the model's weights.
        formats: in which labels are written.

    Raises:
        MaskCLIPError: the model cannot be had, or does not fit the job.
    """

    def __init__(self, job: Job, device: str = "auto") -> None:
        segmenter = load(
            job.model,
            weights=job.weights,
            device=device,
            precision=job.precision,
            templates=job.templates,
        )
        self.fingerprint = segmenter.fingerprint
        self.vocabulary = segmenter.prepare(job.vocabulary, options=job.options)
        precision = str(segmenter.precision).removeprefix("torch.")
        self.job = replace(job, vocabulary=self.vocabulary, precision=precision)
        job.cleaning.thresholds(self.vocabulary)  # refuses a class that there is not
        self.network = segmenter.network
        self.scoring = segmenter.scoring(self.vocabulary, job.options)
        self.formats = open_formats(job.formats, self.vocabulary, job.out)
        self._wants_probabilities = any(f.wants_probabilities for f in self.formats)

    def label(self, chunks: Iterable[Chunk]) -> Generator[list[Outcome], None, None]:
        """Label the photos of chunks; yield what became of each chunk's, in their order.

        Raises:
            LabelError: a file cannot be written for a reason that will not go away by itself.
        """
        waiting: deque[list[Future[Outcome] | Outcome]] = deque()
        with ThreadPoolExecutor(_READERS) as readers, ThreadPoolExecutor(_WRITERS) as writers:
            try:
                for seen in self._read_ahead(chunks, readers):
                    waiting.append(self._infer(seen, writers))
                    while waiting and (len(waiting) > _WAITING or _is_settled(waiting[0])):
                        yield _settled(waiting.popleft())
                while waiting:
                    yield _settled(waiting.popleft())
            finally:
                readers.shutdown(cancel_futures=True)
                writers.shutdown(cancel_futures=True)

    def _read_ahead(
        self, chunks: Iterable[Chunk], readers: ThreadPoolExecutor
    ) -> Iterator[list[_Seen | Outcome]]:
        """Yield the photos of each chunk, while those of the next are being read."""
        ahead: list[Future[_Seen | Outcome]] = []
        for chunk in chunks:
            ready, ahead = ahead, [readers.submit(self._read, task) for task in chunk]
            if ready:
                yield [future.result() for future in ready]
        if ahead:
            yield [future.result() for future in ahead]

    def _read(self, task: Task) -> _Seen | Outcome:
        try:
            photo = load_image(task.path, max_pixels=self.job.max_pixels)
        except MaskCLIPError as error:
            return Outcome(task, error=str(error))
        size = (photo.height, photo.width)
        seen = network_size(size, self.job.options, self.network)
        return _Seen(task, size, network_input(photo, seen, self.network), reduced(photo))

    def _infer(
        self, chunk: list[_Seen | Outcome], writers: ThreadPoolExecutor
    ) -> list[Future[Outcome] | Outcome]:
        """Run the network on a chunk, in batches of one size; the rest is left to the writers."""
        photos = [seen for seen in chunk if isinstance(seen, _Seen)]
        results: list[Future[Outcome] | Outcome] = [s for s in chunk if isinstance(s, Outcome)]
        sizes = [(seen.pixels.shape[1], seen.pixels.shape[2]) for seen in photos]
        for batch in batches_of(sizes, self.job.options):
            members = [photos[index] for index in batch]
            for seen, maps in zip(members, self._maps(members), strict=True):
                if maps is None:
                    message = f"{seen.task.path}: too large for the memory of the device"
                    results.append(Outcome(seen.task, error=message))
                else:
                    results.append(writers.submit(self._write, seen, maps))
        return results

    def _maps(self, photos: list[_Seen]) -> list[PhotoMaps | None]:
        """Read photos of one size together, in halves where memory is short; None: not even one."""
        outputs = [seen.size for seen in photos]
        try:
            with torch.inference_mode():
                pixels = [seen.pixels for seen in photos]
                return list(
                    read_maps(pixels, outputs, self.job.options, self.network, self.scoring)
                )
        except torch.OutOfMemoryError:
            if len(photos) == 1:
                return [None]
        half = len(photos) // 2
        return self._maps(photos[:half]) + self._maps(photos[half:])

    def _write(self, seen: _Seen, maps: PhotoMaps) -> Outcome:
        job, task = self.job, seen.task
        if not maps.maps.isfinite().all():
            message = f"{task.path}: the network's values are not finite: try --precision float32"
            return Outcome(task, error=message)
        with torch.inference_mode():
            try:
                labels, scores = maps.labels(self.vocabulary)
            except torch.OutOfMemoryError:  # the network needs the device for other photos
                maps = replace(maps, maps=maps.maps.cpu())
                labels, scores = maps.labels(self.vocabulary)
            probabilities = maps.grid() if self._wants_probabilities else None
        kept = clean(labels, scores, job.cleaning, self.vocabulary)
        try:
            item = Labeled(task.name, task.place, kept, scores, probabilities)
            for written in self.formats:
                written.write(item)
            write_thumbnail(seen.small, kept, self.vocabulary, thumbnail_path(job.out, task.name))
        except MaskCLIPError as error:
            return Outcome(task, error=str(error))
        except OSError as error:
            if error.errno in _OF_THE_NAME:
                return Outcome(task, error=f"{task.path}: cannot be written ({error.strerror})")
            raise LabelError(
                f"{error.filename or job.out}: cannot be written ({error.strerror or error}). "
                "Nothing half-written is left: mend this, then run the same command to go on"
            ) from error
        height, width = labels.shape
        return Outcome(task, width, height, tuple(_found(labels, kept, scores)))


def _is_settled(results: list[Future[Outcome] | Outcome]) -> bool:
    return all(item.done() for item in results if isinstance(item, Future))


def _settled(results: list[Future[Outcome] | Outcome]) -> list[Outcome]:
    outcomes = [item.result() if isinstance(item, Future) else item for item in results]
    return sorted(outcomes, key=lambda outcome: outcome.task.number)


def _found(labels: Labels, kept: Labels, scores: npt.NDArray[np.float32]) -> Iterator[Found]:
    won = np.bincount(labels.ravel())
    sums = np.bincount(labels.ravel(), weights=scores.ravel())
    left = np.bincount(kept.ravel(), minlength=len(won))
    for label in np.flatnonzero(won).tolist():
        yield Found(label, int(won[label]), int(left[label]), float(sums[label] / won[label]))
