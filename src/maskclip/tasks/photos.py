"""Photos through any network that gives maps: sizes, windows and batches, labels at full size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from maskclip.core import resize
from maskclip.core.draw import Labels
from maskclip.core.segmentation import Segmentation
from maskclip.core.vocabulary import Vocabulary
from maskclip.core.windows import cut, fit_within
from maskclip.tasks.options import Options

ImageSource = str | Path | Image.Image | npt.NDArray[np.uint8]
Classes = Vocabulary | Sequence[str]

LONG_SIDE_RATIO = 4
"""The long side is at most four short sides, as in the published test scale (2048, 512)."""

BATCH = 8
"""Windows a forward; bounds memory for large images cut into many."""

Size = tuple[int, int]
"""Height and width, in px."""

Maps = tuple[Tensor, Size]
"""Maps (B, K, h, w) of B crops, and the (height, width) in px that they cover."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """How a network sees photos, and how its maps become labels.

    Attributes:
        read: up to `BATCH` crops (B, 3, h, w) uint8 of one shape, on its device -> their maps.
        short_side: the working size in px.
        antialias: whether shrinking filters out what is too fine for the new size.
        resizes: from grid to image: 1, or 2 by way of the size that the network saw.
        device: where the network is.
    """

    read: Callable[[Tensor], Maps]
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
        """Return the labels (H, W), in the vocabulary's type, and the scores (H, W) of a photo."""
        labels, scores = resize.label(self.maps, self.geometry)
        ids, narrow = labels.cpu().numpy(), vocabulary.label_dtype is np.uint8
        return ids.astype(np.uint8) if narrow else ids.astype(np.uint16), scores.cpu().numpy()

    def grid(self) -> npt.NDArray[np.float32]:
        """Return one map a class (K, h, w), on a grid that spans the photo, windows averaged."""
        covered, seen = self.geometry.covered, self.geometry.seen
        height, width = (
            math.ceil(cells * whole / part)
            for cells, whole, part in zip(self.maps.shape[2:], seen, covered, strict=True)
        )
        onto = replace(self.geometry, output=(height, width), resizes=1)
        return resize.enlarge(self.maps, onto).cpu().numpy()


def as_vocabulary(classes: Classes) -> Vocabulary:
    """Return a vocabulary from one, or from names such as `-c` takes them."""
    if isinstance(classes, Vocabulary):
        return classes
    return Vocabulary.parse(classes)


def segment_photos(
    photos: list[Image.Image], vocabulary: Vocabulary, options: Options, network: Network
) -> list[Segmentation]:
    """Segment photos in batches of those that the network sees at the same size.

    Args:
        photos: RGB, of any sizes.
        vocabulary: one class a map.
        options: sizes and windows are read.
        network: what reads them.
    """
    sizes = [network_size((photo.height, photo.width), options, network) for photo in photos]
    results: dict[int, Segmentation] = {}
    for batch in batches_of(sizes, options):
        seen = [network_input(photos[i], sizes[i], network) for i in batch]
        outputs = [(photos[i].height, photos[i].width) for i in batch]
        for index, found in zip(batch, read_maps(seen, outputs, options, network), strict=True):
            labels, scores = found.labels(vocabulary)
            results[index] = Segmentation(labels, scores, vocabulary, photos[index])
    return [results[index] for index in range(len(photos))]


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


def read_maps(
    seen: Sequence[Tensor], outputs: Sequence[Size], options: Options, network: Network
) -> list[PhotoMaps]:
    """Read photos (3, h, w) uint8 of one size; their labels will have the sizes of `outputs`."""
    images = torch.stack(list(seen)).to(network.device)
    size = (images.shape[2], images.shape[3])
    windows = cut(size, window=options.window, stride=options.stride)
    crops = torch.cat([images[:, :, r.start : r.stop, c.start : c.stop] for r, c in windows])
    parts = [network.read(crops[start : start + BATCH]) for start in range(0, len(crops), BATCH)]
    maps, covered = torch.cat([maps for maps, _ in parts]), parts[0][1]
    maps = maps.reshape(len(windows), len(images), *maps.shape[1:])
    return [
        PhotoMaps(maps[:, index], resize.Geometry(windows, covered, size, output, network.resizes))
        for index, output in enumerate(outputs)
    ]
