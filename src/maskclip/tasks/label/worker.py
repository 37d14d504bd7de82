"""One worker: photos in, files out, and statistics of what was found.

Photos are read ahead in threads, the network has a thread of its own, and labels are enlarged,
cleaned and written in others.
"""

from __future__ import annotations

import errno
import math
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from maskclip.core.cleaning import clean
from maskclip.core.draw import Labels
from maskclip.core.errors import MaskCLIPError
from maskclip.data.formats import Labeled
from maskclip.data.formats.per_photo import fit_photo
from maskclip.data.images import ImageError, load_image
from maskclip.data.names import output_stems
from maskclip.data.sources import Source
from maskclip.tasks.label import Chunk, ClassStats, Job, Outcome, Task
from maskclip.tasks.photos import (
    PhotoMaps,
    Size,
    batches_of,
    network_input,
    network_size,
    read_maps,
)
from maskclip.tasks.segmenter import load

FLAT_CHUNK = 8
"""Photos that `segment_files` reads together, and then shows together."""

_READERS = max(2, min(8, (os.cpu_count() or 2) // 2))
_WRITERS = _READERS
_WAITING = 2  # chunks whose files are being written while the network goes on
_KEPT_PIXELS = 2_000_000  # of a photo that is kept to be drawn; larger ones are read again
_LARGE_PIXELS = 20_000_000  # of photos that are written one at a time: they take 40 bytes a pixel

# Errors that concern one photo's name, and do not stop the others.
_OF_THE_NAME = {
    errno.ENAMETOOLONG,
    errno.EILSEQ,
    errno.EINVAL,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,  # a file where a folder must be
}


@dataclass(frozen=True, eq=False)
class _Input:
    """A photo that was read: its (H, W), the network's input, and the photo as formats want it.

    Large photos are not kept, for many wait for the network and for the writers.
    """

    task: Task
    size: Size
    pixels: Tensor
    photo: Image.Image | None


class Worker:
    """A model on a device, with the formats in which its labels are written.

    Args:
        job: what is done.
        device: as `load` takes it.

    Attributes:
        job: the same, with the classes and the precision that the model has found.
        fingerprint: a hash of the model's weights.
        formats: what writes the labels.

    Raises:
        MaskCLIPError: the model cannot be loaded, or does not fit the job.
    """

    def __init__(self, job: Job, device: str = "auto") -> None:
        segmenter = load(job.model, device=device)
        self.fingerprint = segmenter.fingerprint
        self.vocabulary = segmenter.prepare(job.vocabulary, options=job.options)
        precision = str(segmenter.precision).removeprefix("torch.")
        model = replace(job.model, precision=precision)
        self.job = replace(job, model=model, vocabulary=self.vocabulary)
        job.cleaning.thresholds(self.vocabulary)  # refuses unknown classes
        self.network = segmenter.network
        self.scoring = segmenter.scoring(self.vocabulary, job.options)
        self.formats = self.job.open_formats(self.vocabulary)
        self._wants_probabilities = any(f.wants_probabilities for f in self.formats)
        self._photo_side = max((f.photo_side for f in self.formats), default=0)
        self._one_at_a_time = threading.Lock()

    def label(self, chunks: Iterable[Chunk]) -> Generator[list[Outcome], None, None]:
        """Label the photos of chunks; yield the outcomes of each chunk, in the order of photos.

        Photos of one size are read by the network in batches, within their chunk. Its values differ
        in their last digits from one batch size to another. So a chunk that is labelled again gives
        the same files, and a photo in another chunk, or alone, the same labels except where two
        classes are that close: of 15.7 million pixels of drawn scenes, labelled alone and in
        batches of 8, 2 differ with `emoji-vit` and none with `emoji`.
        """
        waiting: deque[list[Future[Outcome] | Outcome]] = deque()
        with ThreadPoolExecutor(_READERS) as readers, ThreadPoolExecutor(_WRITERS) as writers:
            try:
                for inputs in self._read_ahead(chunks, readers):
                    waiting.append(self._infer(inputs, writers))
                    while waiting and (len(waiting) > _WAITING or _is_done(waiting[0])):
                        yield _outcomes(waiting.popleft())
                while waiting:
                    yield _outcomes(waiting.popleft())
            finally:
                readers.shutdown(cancel_futures=True)
                writers.shutdown(cancel_futures=True)

    def _read_ahead(
        self, chunks: Iterable[Chunk], readers: ThreadPoolExecutor
    ) -> Iterator[list[_Input | Outcome]]:
        """Yield the photos of each chunk, while those of the next are being read."""
        ahead: list[Future[_Input | Outcome]] = []
        for chunk in chunks:
            ready, ahead = ahead, [readers.submit(self._read, task) for task in chunk]
            if ready:
                yield [future.result() for future in ready]
        if ahead:
            yield [future.result() for future in ahead]

    def _read(self, task: Task) -> _Input | Outcome:
        try:
            photo = load_image(task.path, max_pixels=self.job.max_pixels)
        except MaskCLIPError as error:
            return Outcome(task, error=str(error))
        size = (photo.height, photo.width)
        seen = network_size(size, self.job.options, self.network)
        pixels = network_input(photo, seen, self.network)
        return _Input(task, size, pixels, self._to_be_drawn(photo))

    def _to_be_drawn(self, photo: Image.Image) -> Image.Image | None:
        if self._photo_side < math.inf:
            return fit_photo(photo, self._photo_side) if self._photo_side else None
        return photo if photo.width * photo.height <= _KEPT_PIXELS else None

    def _infer(
        self, chunk: list[_Input | Outcome], writers: ThreadPoolExecutor
    ) -> list[Future[Outcome] | Outcome]:
        """Run the network on a chunk, in batches of one size; the rest is left to the writers."""
        photos = [item for item in chunk if isinstance(item, _Input)]
        results: list[Future[Outcome] | Outcome] = [i for i in chunk if isinstance(i, Outcome)]
        sizes = [(photo.pixels.shape[1], photo.pixels.shape[2]) for photo in photos]
        for batch in batches_of(sizes, self.job.options):
            members = [photos[index] for index in batch]
            for photo, maps in zip(members, self._maps(members), strict=True):
                if maps is None:
                    message = f"{photo.task.path}: too large for the memory of the device"
                    results.append(Outcome(photo.task, error=message))
                else:
                    results.append(writers.submit(self._write, photo, maps))
        return results

    def _maps(self, photos: list[_Input]) -> list[PhotoMaps | None]:
        """Read photos of one size together, in halves if memory is short; None: not even alone."""
        outputs = [photo.size for photo in photos]
        try:
            with torch.inference_mode():
                pixels = [photo.pixels for photo in photos]
                return list(
                    read_maps(pixels, outputs, self.job.options, self.network, self.scoring)
                )
        except torch.OutOfMemoryError:
            if len(photos) == 1:
                return [None]
        half = len(photos) // 2
        return self._maps(photos[:half]) + self._maps(photos[half:])

    def _write(self, photo: _Input, maps: PhotoMaps) -> Outcome:
        large = math.prod(photo.size) > _LARGE_PIXELS
        with self._one_at_a_time if large else nullcontext():
            return self._write_now(photo, maps)

    def _write_now(self, photo: _Input, maps: PhotoMaps) -> Outcome:
        task = photo.task
        try:
            labels, scores = self._at_full_size(maps)
        except MaskCLIPError as error:
            return Outcome(task, error=f"{task.path}: {error}")
        kept = clean(labels, scores, self.job.cleaning, self.vocabulary)
        try:
            item = Labeled(
                task.name,
                task.relative_path,
                kept,
                scores,
                maps.maps.cpu().numpy() if self._wants_probabilities else None,
                maps.geometry,
                self._photo(photo),
            )
            for written in self.formats:
                written.write(item)
        except MaskCLIPError as error:
            return Outcome(task, error=str(error))
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in _OF_THE_NAME:
                return Outcome(task, error=f"{task.path}: cannot be written ({reason})")
            message = f"{error.filename or self.job.out}: cannot be written ({reason})"
            return Outcome(task, error=message, fatal=True)
        height, width = labels.shape
        return Outcome(task, width, height, tuple(_class_stats(labels, kept, scores)))

    @torch.inference_mode()
    def _at_full_size(self, maps: PhotoMaps) -> tuple[Labels, npt.NDArray[np.float32]]:
        """Return labels and scores (H, W)."""
        try:
            return maps.labels(self.vocabulary)
        except torch.OutOfMemoryError:  # the network needs the device for other photos
            return replace(maps, maps=maps.maps.cpu()).labels(self.vocabulary)

    def _photo(self, photo: _Input) -> Image.Image | None:
        if photo.photo is not None or not self._photo_side:
            return photo.photo
        again = load_image(photo.task.path, max_pixels=self.job.max_pixels)
        if (again.height, again.width) != photo.size:
            raise ImageError(f"{photo.task.path}: changed while it was being labelled")
        return again


def segment_files(worker: Worker, sources: Sequence[Source]) -> Iterator[Outcome]:
    """Label photos into one flat folder; yield the outcome of each, in order.

    Names are those of the photos, with their suffix or folders where two would be the same.
    """
    names = output_stems([source.path for source in sources])
    tasks = [
        Task(number, source.path, source.relative_path, name)
        for number, (source, name) in enumerate(zip(sources, names, strict=True))
    ]
    starts = range(0, len(tasks), FLAT_CHUNK)
    for outcomes in worker.label(tuple(tasks[start : start + FLAT_CHUNK]) for start in starts):
        yield from outcomes


def _is_done(results: list[Future[Outcome] | Outcome]) -> bool:
    return all(item.done() for item in results if isinstance(item, Future))


def _outcomes(results: list[Future[Outcome] | Outcome]) -> list[Outcome]:
    outcomes = [item.result() if isinstance(item, Future) else item for item in results]
    return sorted(outcomes, key=lambda outcome: outcome.task.number)


def _class_stats(
    labels: Labels, kept: Labels, scores: npt.NDArray[np.float32]
) -> Iterator[ClassStats]:
    pixels = np.bincount(labels.ravel())
    sums = np.bincount(labels.ravel(), weights=scores.ravel())
    left = np.bincount(kept.ravel(), minlength=len(pixels))
    for label in np.flatnonzero(pixels).tolist():
        count = int(pixels[label])
        yield ClassStats(label, count, int(left[label]), float(sums[label] / count))
