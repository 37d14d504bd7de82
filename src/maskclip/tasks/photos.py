"""Photos through any network: sizes, windows and batches; encode, score, refine; labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from maskclip.core import resize
from maskclip.core.config import Options
from maskclip.core.dense import Dense, Scoring, label, pool_synonyms, refine, score
from maskclip.core.device import is_out_of_memory
from maskclip.core.draw import Labels
from maskclip.core.errors import MaskCLIPError
from maskclip.core.refinement import probabilities
from maskclip.core.resize import cut, enlarge, fit_within
from maskclip.core.view import working_sides
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.images import load_image

"""The long side is at most four short sides, as in the published test scale (2048, 512)."""

BATCH = 8
"""Windows a forward; bounds memory for large images cut into many."""

LARGE_PIXELS = 20_000_000
"""Pixels from which on a photo is worked on in parts, and alone."""

ImageSource = str | Path | Image.Image | npt.NDArray[np.uint8]

Item = TypeVar("Item")
Result = TypeVar("Result")

Size = tuple[int, int]
"""Height and width, in px."""


class Encode(Protocol):
    """What sees images."""

    def __call__(self, crops: Tensor, /, *, keys: bool, image: bool) -> Dense:
        """Encode up to `BATCH` crops (B, 3, h, w) uint8 of one shape, on the network's device."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """An image network, and how it sees photos.

    Attributes:
        encode: crops -> dense features, with keys and the images' own embeddings where needed.
        short_side: the working size in px.
        antialias: whether shrinking filters out what is too fine for the new size; else photos are
            resized as by OpenCV, to the same bytes.
        resizes: from grid to image: 1, or 2 by way of the size that the network saw.
        device: where the network is.
    """

    encode: Encode
    short_side: int
    antialias: bool
    resizes: int
    device: torch.device


@dataclass(frozen=True, eq=False)
class PhotoMaps:
    """What a network made of one photo.

    Attributes:
        maps: (n, K or P, h, w) of the n windows it was cut into, on the network's device.
        geometry: where they lie in the photo's labels.
        scoring: by which they were made.
    """

    maps: Tensor
    geometry: resize.Geometry
    scoring: Scoring

    def labels(self, vocabulary: Vocabulary) -> tuple[Labels, npt.NDArray[np.float32]]:
        """Return the labels (H, W), in the vocabulary's type, and the scores (H, W) of a photo.

        Raises:
            MaskCLIPError: the maps have values that are not finite.
        """
        if not self.maps.isfinite().all():
            raise MaskCLIPError(
                "the network's values are not finite: try `precision=float32`, or other weights"
            )
        narrow = vocabulary.label_dtype is np.uint8
        dtype = torch.uint8 if narrow else torch.int32  # torch's uint16 lacks most operations
        labels, scores = label(self.maps, self.geometry, self.scoring, dtype=dtype)
        ids = labels.cpu().numpy()
        return ids if narrow else ids.astype(np.uint16), scores.cpu().numpy()

    def of(self, index: int) -> npt.NDArray[np.float32]:
        """Return the map of one class (H, W), of which the scores of its pixels are made."""
        maps, scoring = self.maps, self.scoring
        if scoring.prompts_compete:
            maps = pool_synonyms(probabilities(maps, scoring.temperature), scoring.classes)
            index -= scoring.threshold is not None
            if index < 0:  # a background by threshold has no map: it is where the others are low
                maps, index = 1 - maps.amax(dim=1, keepdim=True), 0
        return enlarge(maps[:, index : index + 1], self.geometry)[0].cpu().numpy()


def network_size(size: Size, options: Options, network: Network) -> Size:
    """Return the size at which the network sees a photo."""
    short, long = working_sides(options, network.short_side)
    return fit_within(size, short=short, long=long) if short else size


def batches_of(sizes: Sequence[Size], options: Options) -> list[list[int]]:
    """Group photos, by index, that are read together: of one size, of at most `BATCH` windows."""
    groups: dict[Size, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    batches = []
    for size, members in groups.items():
        count = max(1, BATCH // len(cut(size, window=options.window, stride=options.stride)))
        batches += [members[start : start + count] for start in range(0, len(members), count)]
    return batches


def network_input(photo: Image.Image, size: Size, network: Network) -> Tensor:
    """Return a photo at the network's size, (3, h, w) uint8 in main memory."""
    height, width = size
    if network.antialias and photo.size != (width, height):
        photo = photo.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.array(photo)
    if photo.size != (width, height):
        import cv2  # not quick to import, and the default method does without

        pixels = np.asarray(cv2.resize(pixels, (width, height)), np.uint8)  # bilinear
    return torch.from_numpy(pixels).permute(2, 0, 1)


def in_halves(
    run: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
) -> list[Result | None]:
    """Return what a run makes of items together, or in halves where memory is short.

    None stands for an item that is too much alone.
    """
    try:
        return list(run(items))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(items) == 1:
            return [None]
    half = len(items) // 2  # not in the block above, whose error holds on to what was computed
    return in_halves(run, items[:half]) + in_halves(run, items[half:])


class Photo(NamedTuple):
    """An image, and its path if it is a file."""

    image: Image.Image
    path: str | None

    @property
    def size(self) -> Size:
        """Its height and width."""
        return self.image.height, self.image.width


def of_each(
    images: Sequence[ImageSource],
    options: Options,
    network: Network,
    run: Callable[[list[Photo], list[Tensor]], list[Result]],
) -> list[Result]:
    """Return what a run makes of each image, in batches of those of one size for the network.

    Args:
        images: files, or in memory.
        options: how they are cut.
        network: what sees them.
        run: gets photos, and the same at the network's size, (3, h, w) uint8.

    Raises:
        MaskCLIPError: an image cannot be read, or is too large for the memory of the device.
    """
    photos = [Photo(load_image(image), _path(image)) for image in images]
    sizes = [network_size(photo.size, options, network) for photo in photos]

    def together(batch: Sequence[int]) -> list[Result]:
        seen = [network_input(photos[index].image, sizes[index], network) for index in batch]
        return run([photos[index] for index in batch], seen)

    results: dict[int, Result] = {}
    with torch.inference_mode():
        for batch in batches_of(sizes, options):
            for index, result in zip(batch, in_halves(together, batch), strict=True):
                if result is None:
                    width, height = photos[index].image.size
                    raise MaskCLIPError(
                        f"an image of {width}x{height} px is too large for the memory of the "
                        "device: give a smaller `short_side`, or a `window`"
                    )
                results[index] = result
    return [results[index] for index in range(len(photos))]


def _path(image: ImageSource) -> str | None:
    return str(image) if isinstance(image, str | Path) else None


class Encoded(NamedTuple):
    """What a network sees in one photo.

    Attributes:
        dense: what `encode` returned for the n windows that the photo was cut into.
        guide: (3, h, w) uint8, the photo at the network's size, on its device.
        geometry: where the windows lie in the photo's labels.
    """

    dense: Dense
    guide: Tensor
    geometry: resize.Geometry


class _Crops:
    """The windows of photos of one size, in batches for a network, and back to their photos."""

    def __init__(self, seen: Sequence[Tensor], options: Options, network: Network) -> None:
        self.photos = torch.stack(list(seen)).to(network.device)
        self.size = (self.photos.shape[2], self.photos.shape[3])
        self.windows = cut(self.size, window=options.window, stride=options.stride)
        self.resizes = network.resizes

    def batches(self) -> Iterator[Tensor]:
        """Yield up to `BATCH` crops (B, 3, h, w) at a time: the first window of all photos, ..."""
        count = len(self.photos)
        for start in range(0, len(self.windows) * count, BATCH):
            stop = min(start + BATCH, len(self.windows) * count)
            yield torch.stack([self._crop(*divmod(index, count)) for index in range(start, stop)])

    def _crop(self, window: int, photo: int) -> Tensor:
        rows, columns = self.windows[window]
        return self.photos[photo, :, rows.start : rows.stop, columns.start : columns.stop]

    def each(self) -> Iterator[tuple[Tensor, slice]]:
        """Yield every photo, and which of all crops are its windows."""
        for index, photo in enumerate(self.photos):
            yield photo, slice(index, None, len(self.photos))

    def geometry(self, covered: Size, output: Size) -> resize.Geometry:
        """Return where grids lie that cover so much of their windows, in labels of a size."""
        return resize.Geometry(self.windows, covered, self.size, output, self.resizes)


def encode_photos(
    seen: Sequence[Tensor],
    outputs: Sequence[Size],
    options: Options,
    network: Network,
    *,
    keys: bool,
    image: bool,
) -> list[Encoded]:
    """Encode photos (3, h, w) uint8 of one size; their labels will have the sizes of `outputs`."""
    crops = _Crops(seen, options, network)
    found = [network.encode(batch, keys=keys, image=image) for batch in crops.batches()]
    dense = Dense.join(found)
    return [
        Encoded(dense.part(own), photo.clone(), crops.geometry(dense.covered, output))
        for (photo, own), output in zip(crops.each(), outputs, strict=True)
    ]


def score_photo(encoded: Encoded, scoring: Scoring) -> PhotoMaps:
    """Compare an encoded photo with text rows, and refine the maps."""
    maps = score(encoded.dense, scoring)
    return PhotoMaps(*refine(maps, encoded.guide, encoded.geometry, scoring), scoring)


def read_maps(
    seen: Sequence[Tensor],
    outputs: Sequence[Size],
    options: Options,
    network: Network,
    scoring: Scoring,
) -> list[PhotoMaps]:
    """Encode photos (3, h, w) uint8 of one size, and score them at once.

    The same as `encode_photos`, then `score_photo`, but features are freed batch by batch: those
    of a large photo in many windows would take more memory than its maps.
    """
    crops, parts, covered = _Crops(seen, options, network), [], (0, 0)
    for batch in crops.batches():
        dense = network.encode(batch, keys=scoring.needs_keys, image=scoring.needs_image)
        parts.append(score(dense, scoring))
        covered = dense.covered
    maps = torch.cat(parts)
    return [
        PhotoMaps(*refine(maps[own], photo, crops.geometry(covered, output), scoring), scoring)
        for (photo, own), output in zip(crops.each(), outputs, strict=True)
    ]
