"""Photos through any network: sizes, windows and batches; encode, score, refine; labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from maskclip.core import resize
from maskclip.core.config import Options
from maskclip.core.dense import Dense, Scoring, label, refine, score
from maskclip.core.device import is_out_of_memory
from maskclip.core.draw import Labels
from maskclip.core.errors import MaskCLIPError
from maskclip.core.resize import cut, fit_within
from maskclip.core.vocabulary import Vocabulary

LONG_SIDE_RATIO = 4
"""The long side is at most four short sides, as in the published test scale (2048, 512)."""

BATCH = 8
"""Windows a forward; bounds memory for large images cut into many."""

LARGE_PIXELS = 20_000_000
"""Pixels from which on a photo is worked on in parts, and alone."""

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
        antialias: whether shrinking filters out what is too fine for the new size.
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


def network_size(size: Size, options: Options, network: Network) -> Size:
    """Return the size at which the network sees a photo."""
    short = network.short_side if options.short_side is None else options.short_side
    long = LONG_SIDE_RATIO * short if options.long_side is None else options.long_side
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
    if network.antialias and photo.size != (size[1], size[0]):
        photo = photo.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    if photo.size == (size[1], size[0]):
        return torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    if photo.width * photo.height > LARGE_PIXELS:
        return _interpolated(photo, size)
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    smooth = F.interpolate(pixels[None].float(), size=size, mode="bilinear")
    return smooth[0].round().to(torch.uint8)


def _interpolated(photo: Image.Image, size: Size) -> Tensor:
    """Do what `F.interpolate` does, row by row: it would take 12 bytes for every pixel."""
    rows, columns = (
        resize.bilinear_taps(inputs, range(outputs), scale=inputs / outputs)
        for inputs, outputs in ((photo.height, size[0]), (photo.width, size[1]))
    )
    pixels = torch.empty((3, *size), dtype=torch.uint8)
    for row, (low, weight) in enumerate(zip(rows.low.tolist(), rows.weight.tolist(), strict=True)):
        pair = np.array(photo.crop((0, low, photo.width, min(low + 2, photo.height))))
        two = torch.from_numpy(pair).float()  # 2 (or 1) x W x 3
        across = torch.lerp(two[:, columns.low], two[:, columns.high], columns.weight[:, None])
        pixels[:, row] = torch.lerp(across[0], across[-1], weight).round().to(torch.uint8).T
    return pixels


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
