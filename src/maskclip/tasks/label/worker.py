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
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from maskclip.core.cleaning import clean
from maskclip.core.device import free_memory, is_out_of_memory
from maskclip.core.draw import Labels, class_pixels
from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import make_durable
from maskclip.core.methods import AUTO
from maskclip.core.segmentation import class_totals
from maskclip.data.corrections import Corrections
from maskclip.data.formats import Labeled
from maskclip.data.formats.per_photo import fit_photo
from maskclip.data.images import ImageError, image_size, load_image, load_reduced
from maskclip.data.names import output_stems
from maskclip.data.sources import Source
from maskclip.tasks.label import Chunk, ClassStats, Job, Outcome, Task
from maskclip.tasks.photos import (
    LARGE_PIXELS,
    PhotoMaps,
    Size,
    batches_of,
    in_halves,
    network_input,
    network_size,
    read_maps,
)
from maskclip.tasks.segmenter import load
from maskclip.tasks.voting import Voting

# Photos that `segment_files` reads together: on a CPU more gain little, and come later.
_FLAT_CHUNK, _CPU_CHUNK = 8, 2
_READERS = max(2, min(8, (os.cpu_count() or 2) // 2))
_WRITERS = _READERS
_WAITING = 2  # chunks whose files are being written while the network goes on
_KEPT_PIXELS = 2_000_000  # of a photo that is kept to be drawn; larger ones are read again
# What a large photo takes at its peak, per pixel (measured): labelled, and drawn with its colours.
_LABELED_BYTES, _DRAWN_BYTES = 9, 11
_VOTING_BYTES = 6  # more, of the segments and of what they make of labels and scores (measured)

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


_Result = Future[Outcome] | Outcome


class Worker:
    """A model on a device, with the formats in which its labels are written.

    Args:
        job: what is done.
        device: as `load` takes it.

    Attributes:
        job: the same, with the classes, the precision, the method and the runtime that were found.
        why: why `auto` became this method; "" where it was named.
        runtime_why: the same of the runtime.
        fingerprint: a hash of the model's weights.
        tokenizer: a hash of what makes tokens of its words; "" is CLIP's own, or none.
        formats: what writes the labels.

    Raises:
        MaskCLIPError: the model cannot be loaded, or does not fit the job.
    """

    def __init__(self, job: Job, device: str = "auto") -> None:
        self._voting = Voting.of(job.options)
        segmenter = load(job.model, device=device, options=job.options, runtime=job.runtime)
        self.fingerprint, self.why = segmenter.fingerprint, segmenter.why
        self.runtime_why = segmenter.runtime_why
        self.vocabulary = segmenter.prepare(job.vocabulary, options=job.options)
        self.tokenizer = segmenter.tokenizer_identity()
        precision = str(segmenter.precision).removeprefix("torch.")
        method = segmenter.method if self.why else job.model.method
        model = replace(job.model, precision=precision, method=method)
        runtime = segmenter.runtime if job.runtime == AUTO else job.runtime
        self.job = replace(job, model=model, vocabulary=self.vocabulary, runtime=runtime)
        job.cleaning.thresholds(self.vocabulary)  # refuses unknown classes
        self.network = segmenter.network
        self.scoring = segmenter.scoring(self.vocabulary, job.options)
        self.formats = self.job.open_formats(self.vocabulary)
        self._wants_probabilities = any(f.wants_probabilities for f in self.formats)
        self._wants_scores = any(f.wants_scores for f in self.formats)
        self._photo_side = max((f.photo_side for f in self.formats), default=0)
        self._corrections = None if job.flat else Corrections(job.out)
        self._one_at_a_time = threading.Lock()

    def label(self, chunks: Iterable[Chunk]) -> Generator[list[Outcome], None, None]:
        """Label the photos of chunks; yield the outcomes of each chunk, in the order of photos."""
        lengths = deque[int]()

        def counted() -> Iterator[Chunk]:
            for chunk in chunks:
                lengths.append(len(chunk))
                yield chunk

        outcomes: list[Outcome] = []
        with closing(self.label_each(counted())) as found:
            for outcome in found:
                outcomes.append(outcome)
                if len(outcomes) == lengths[0]:
                    lengths.popleft()
                    yield outcomes
                    outcomes = []

    def label_each(self, chunks: Iterable[Chunk]) -> Generator[Outcome, None, None]:
        """Label the photos of chunks; yield the outcome of each, in order, as soon as it is there.

        Photos of one size are read by the network in batches, within their chunk. Its values differ
        in their last digits from one batch size to another. So a chunk that is labelled again gives
        the same files, and a photo in another chunk, or alone, the same labels except where two
        classes are that close: of 15.7 million pixels of drawn scenes, labelled alone and in
        batches of 8, 2 differ with `emoji-vit` and none with `emoji`.
        """
        order, found = deque[int](), dict[int, _Result]()  # the numbers of photos, their results
        with ThreadPoolExecutor(_READERS) as readers, ThreadPoolExecutor(_WRITERS) as writers:
            try:
                for chunk in self._read_ahead(chunks, readers):
                    order.extend(item.task.number for item in chunk)
                    for results in self._infer(chunk, writers):
                        found |= results
                        while order and _is_done(found.get(order[0])):
                            yield _outcome(found.pop(order.popleft()))
                    while len(order) > _WAITING * len(chunk):
                        yield _outcome(found.pop(order.popleft()))
                while order:
                    yield _outcome(found.pop(order.popleft()))
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
        most = self.job.max_pixels
        try:
            if self._voting is not None:
                self._voting.map_of(task.relative_path)  # refuses a photo that has none
            width, height = image_size(task.path, max_pixels=most)
            if width * height <= LARGE_PIXELS:
                photo = load_image(task.path, max_pixels=most)
                return self._prepared(task, photo, (photo.height, photo.width))
            with self._one_at_a_time:
                self._check_memory(task, width * height)
                photo, (width, height) = load_reduced(task.path, self._least, max_pixels=most)
                return self._prepared(task, photo, (height, width))
        except (MaskCLIPError, MemoryError) as error:
            return Outcome(task, error=_message(error, task))

    def _prepared(self, task: Task, photo: Image.Image, size: Size) -> _Input:
        seen = network_size(size, self.job.options, self.network)
        pixels = network_input(photo, seen, self.network)
        return _Input(task, size, pixels, self._to_be_drawn(photo, size))

    def _least(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the least (width, height) of a photo from which the network's input is made well.

        Twice what the network sees: a decoder shrinks by other filters.
        """
        if not self.network.antialias:
            return size
        height, width = network_size((size[1], size[0]), self.job.options, self.network)
        thumbnail = self._photo_side if self._photo_side < math.inf else 0
        factor = max(2.0, 2 * thumbnail / max(width, height))
        return min(size[0], math.ceil(factor * width)), min(size[1], math.ceil(factor * height))

    def _check_memory(self, task: Task, pixels: int) -> None:
        """Refuse a large photo before it takes more memory than is free.

        Raises:
            MaskCLIPError: it would.
        """
        drawn = self._photo_side == math.inf
        each = _DRAWN_BYTES if drawn else _LABELED_BYTES
        if self._voting is not None:
            each += _VOTING_BYTES
        needed, free = pixels * each, free_memory()
        if free is not None and needed > free:
            raise MaskCLIPError(
                f"{task.path}: {pixels:,} pixels take about {needed / 1e9:.1f} GB of memory, and "
                f"{free / 1e9:.1f} GB are free"
            )

    def _to_be_drawn(self, photo: Image.Image, size: Size) -> Image.Image | None:
        if self._photo_side < math.inf:
            return fit_photo(photo, self._photo_side) if self._photo_side else None
        whole = (photo.height, photo.width) == size
        return photo if whole and math.prod(size) <= _KEPT_PIXELS else None

    def _infer(
        self, chunk: list[_Input | Outcome], writers: ThreadPoolExecutor
    ) -> Iterator[dict[int, _Result]]:
        """Run the network on a chunk, and leave the rest to the writers; yield results by batch."""
        photos = [item for item in chunk if isinstance(item, _Input)]
        yield {item.task.number: item for item in chunk if isinstance(item, Outcome)}
        sizes = [(photo.pixels.shape[1], photo.pixels.shape[2]) for photo in photos]
        for batch in batches_of(sizes, self.job.options):
            members, results = [photos[index] for index in batch], dict[int, _Result]()
            for photo, maps in zip(members, self._each_maps(members), strict=True):
                if isinstance(maps, str):
                    message = f"{photo.task.path}: {maps}"
                    results[photo.task.number] = Outcome(photo.task, error=message)
                else:
                    results[photo.task.number] = writers.submit(self._write, photo, maps)
            yield results

    def _each_maps(self, photos: Sequence[_Input]) -> list[PhotoMaps | str]:
        """Read photos of one size together; of one that cannot be read, return why."""
        try:
            found = in_halves(self._maps, photos)
        except MaskCLIPError as error:
            if len(photos) == 1:
                return [str(error)]
        else:
            return ["too large for the memory of the device" if m is None else m for m in found]
        return [one for photo in photos for one in self._each_maps([photo])]

    @torch.inference_mode()
    def _maps(self, photos: Sequence[_Input]) -> list[PhotoMaps]:
        """Read photos of one size together."""
        pixels, outputs = [photo.pixels for photo in photos], [photo.size for photo in photos]
        return read_maps(pixels, outputs, self.job.options, self.network, self.scoring)

    def _write(self, photo: _Input, maps: PhotoMaps) -> Outcome:
        large = math.prod(photo.size) > LARGE_PIXELS
        try:
            with self._one_at_a_time if large else nullcontext():
                return self._write_now(photo, maps)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return Outcome(photo.task, error=_message(error, photo.task))

    def _write_now(self, photo: _Input, maps: PhotoMaps) -> Outcome:
        task = photo.task
        try:
            labels, scores = self._at_full_size(maps)
        except MaskCLIPError as error:
            return Outcome(task, error=f"{task.path}: {error}")
        if self._voting is not None:
            try:
                labels, scores = self._voting.vote(
                    labels, scores, photo=task.relative_path, seen=photo.pixels
                )
            except MaskCLIPError as error:
                return Outcome(task, error=str(error))
        kept = clean(labels, scores, self.job.cleaning, self.vocabulary)
        if self._corrections is not None and self._corrections.of(task.name).edit is not None:
            try:
                kept = self._corrections.read_labels(task.name, self.vocabulary, labels.shape[::-1])
            except MaskCLIPError as error:
                return Outcome(task, error=str(error))
            labels, scores = _corrected(labels, scores, kept, self.vocabulary.ignore)
        # `segment` tells of what it writes; the report of `label` also of what was dropped.
        won = kept if self.job.flat else labels
        stats = tuple(_class_stats(won, kept, scores, len(self.vocabulary)))
        (height, width), wanted = labels.shape, scores if self._wants_scores else None
        del labels, scores  # of a large photo they are gigabytes, which drawing needs
        try:
            item = Labeled(
                task.name,
                task.relative_path,
                kept,
                wanted,
                maps.maps.cpu().numpy() if self._wants_probabilities else None,
                maps.geometry,
                self._photo(photo),
            )
            for written in self.formats:
                written.write(item)
            if not self.job.flat:  # which has no record of what is done
                make_durable(path for f in self.formats for path in f.files(task.name))
        except MaskCLIPError as error:
            return Outcome(task, error=str(error))
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in _OF_THE_NAME:
                return Outcome(task, error=f"{task.path}: cannot be written ({reason})")
            message = f"{error.filename or self.job.out}: cannot be written ({reason})"
            return Outcome(task, error=message, fatal=True)
        return Outcome(task, width, height, stats)

    @torch.inference_mode()
    def _at_full_size(self, maps: PhotoMaps) -> tuple[Labels, npt.NDArray[np.float32]]:
        """Return labels and scores (H, W)."""
        try:
            return maps.labels(self.vocabulary)
        except Exception as error:  # the network needs the device for other photos
            if maps.maps.device.type == "cpu" or not is_out_of_memory(error):
                raise
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
    size = _CPU_CHUNK if worker.network.device.type == "cpu" else _FLAT_CHUNK
    chunks = (tuple(tasks[start : start + size]) for start in range(0, len(tasks), size))
    with closing(worker.label_each(chunks)) as found:
        yield from found


def _is_done(result: _Result | None) -> bool:
    return result is not None and (isinstance(result, Outcome) or result.done())


def _outcome(result: _Result) -> Outcome:
    return result.result() if isinstance(result, Future) else result


def _message(error: BaseException, task: Task) -> str:
    """Return the line about a photo's error, which may be that memory is short."""
    if isinstance(error, MaskCLIPError):
        return str(error)
    return f"{task.path}: too large for the memory that is free"


def _corrected(
    labels: Labels, scores: npt.NDArray[np.float32], kept: Labels, ignore: int
) -> tuple[Labels, npt.NDArray[np.float32]]:
    """Return labels and scores of a photo whose labels people have corrected: they are sure.

    Pixels that they set to ignore count as dropped from the model's class.
    """
    known = kept != ignore
    sure = np.where(known & (labels != kept), np.float32(1), scores)
    return np.where(known, kept, labels), sure


def _class_stats(
    labels: Labels, kept: Labels, scores: npt.NDArray[np.float32], count: int
) -> Iterator[ClassStats]:
    """Yield the figures of the `count` classes that appear; ignored pixels are of none."""
    pixels, sums = class_totals(labels, scores)
    left = dict(class_pixels(kept, count))
    for label in np.flatnonzero(pixels[:count]).tolist():
        won = int(pixels[label])
        yield ClassStats(label, won, left.get(label, 0), float(sums[label] / won))
