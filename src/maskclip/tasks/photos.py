"""Photos through any network: sizes, windows and batches; encode, score, refine; labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from maskclip.core import resize
from maskclip.core.config import Options
from maskclip.core.dense import Dense, Scoring, refine, score
from maskclip.core.draw import Labels
from maskclip.core.errors import MaskCLIPError
from maskclip.core.resize import cut, fit_within
from maskclip.core.vocabulary import Vocabulary

LONG_SIDE_RATIO = 4
"""The long side is at most four short sides, as in the published test scale (2048, 512)."""

BATCH = 8
"""Windows a forward; bounds memory for large images cut into many."""

Size = tuple[int, int]
"""Height and width, in px."""


class Encode(Protocol):
    """What sees images."""

    def __call__(self, crops: Tensor, /, *, keys: bool) -> Dense:
        """Encode up to `BATCH` crops (B, 3, h, w) uint8 of one shape, on the network's device."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """An image network, and how it sees photos.

    Attributes:
        encode: crops -> dense features, and keys where these are asked for.
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
        maps: (n, K, h, w) of the n windows it was cut into, on the network's device.
        geometry: where they lie in the photo's labels.
    """

    maps: Tensor
    geometry: resize.Geometry

    def labels(self, vocabulary: Vocabulary) -> tuple[Labels, npt.NDArray[np.float32]]:
        """Return the labels (H, W), in the vocabulary's type, and the scores (H, W) of a photo.

        Raises:
            MaskCLIPError: the maps have values that are not finite.
        """
        if not self.maps.isfinite().all():
            raise MaskCLIPError(
                "the network's values are not finite: try --precision float32, or other weights"
            )
        labels, scores = resize.label(self.maps, self.geometry)
        ids, narrow = labels.cpu().numpy(), vocabulary.label_dtype is np.uint8
        return ids.astype(np.uint8) if narrow else ids.astype(np.uint16), scores.cpu().numpy()


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
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    if tuple(pixels.shape[1:]) != size:
        smooth = F.interpolate(pixels[None].float(), size=size, mode="bilinear")
        pixels = smooth[0].round().to(torch.uint8)
    return pixels


class Encoded(NamedTuple):
    """What a network sees in one photo.

    Attributes:
        dense: features, and keys or None, of the n windows that the photo was cut into.
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
        crops = torch.cat([self.photos[:, :, r.start : r.stop, c.start : c.stop]
                           for r, c in self.windows])  # fmt: skip
        return iter(torch.split(crops, BATCH))

    def apart(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return what became of all crops photo by photo, (n, ...) for its n windows."""
        stacked = torch.cat(list(parts))
        stacked = stacked.reshape(len(self.windows), len(self.photos), *stacked.shape[1:])
        return list(stacked.unbind(dim=1))

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
) -> list[Encoded]:
    """Encode photos (3, h, w) uint8 of one size; their labels will have the sizes of `outputs`."""
    crops = _Crops(seen, options, network)
    found = [network.encode(batch, keys=keys) for batch in crops.batches()]
    features = crops.apart([dense.features for dense in found])
    key_parts = [dense.keys for dense in found if dense.keys is not None]
    key_maps = crops.apart(key_parts) if key_parts else [None] * len(features)
    covered = found[0].covered
    every = zip(features, key_maps, crops.photos, outputs, strict=True)
    return [
        Encoded(Dense(maps, keys_of, covered), guide, crops.geometry(covered, output))
        for maps, keys_of, guide, output in every
    ]


def score_photo(encoded: Encoded, scoring: Scoring) -> PhotoMaps:
    """Compare an encoded photo with text rows, and refine the maps."""
    maps = score(encoded.dense, scoring)
    return PhotoMaps(refine(maps, encoded.guide, encoded.geometry), encoded.geometry)


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
        dense = network.encode(batch, keys=scoring.needs_keys)
        parts.append(score(dense, scoring))
        covered = dense.covered
    found = []
    for maps, guide, output in zip(crops.apart(parts), crops.photos, outputs, strict=True):
        geometry = crops.geometry(covered, output)
        found.append(PhotoMaps(refine(maps, guide, geometry), geometry))
    return found
