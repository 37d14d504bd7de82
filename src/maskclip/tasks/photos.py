"""Photos through any network that gives maps: sizes, windows and batches, labels at full size."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack, overload

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from maskclip.core import resize
from maskclip.core.config import DEFAULT_OPTIONS, Options, OptionValues
from maskclip.core.draw import Labels
from maskclip.core.method import Method
from maskclip.core.segmentation import Segmentation
from maskclip.core.vocabulary import Background, Vocabulary
from maskclip.core.windows import cut, fit_within
from maskclip.data.images import load_image

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


class PhotoSegmenter(ABC):
    """What labels the pixels of photos: a model that knows its classes, or is told them.

    Attributes:
        method: the arithmetic.
        device, precision: where and in what the network computes.
    """

    method: Method
    device: torch.device
    precision: torch.dtype

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the weights, 16 hex digits."""

    @abstractmethod
    def prepare(
        self,
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        options: Options = DEFAULT_OPTIONS,
    ) -> Vocabulary:
        """Return the vocabulary that `segment` would use; refuse now what it would refuse.

        Raises:
            MaskCLIPError: the classes or the options cannot be used.
        """

    @abstractmethod
    def network(self, vocabulary: Vocabulary, options: Options) -> Network:
        """Return the network, told to look for the classes of a vocabulary of `prepare`."""

    @overload
    def segment(
        self,
        images: ImageSource,
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        **options: Unpack[OptionValues],
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        images: list[ImageSource] | tuple[ImageSource, ...],
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        **options: Unpack[OptionValues],
    ) -> list[Segmentation]: ...

    def segment(
        self,
        images: ImageSource | list[ImageSource] | tuple[ImageSource, ...],
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        **options: Unpack[OptionValues],
    ) -> Segmentation | list[Segmentation]:
        """Label every pixel of one image, or of each image of a list.

        Args:
            images: a path, a PIL image or a uint8 array (H, W, 3); or a list of them, of any sizes.
            classes: names (`"dog"`, or `"person=man,woman"` with synonyms), or a `Vocabulary`. A
                student has its own: None, unless its file does not carry them.
            background: None; a threshold in (-1, 1) under which a pixel is background (clean:
                of the best probability; published: of the best map value); or words that are.
                Not for students.
            options: fields of `Options`: `key_smoothing`, `prompt_denoising`, `short_side`,
                `long_side`, `window`, `stride`. The first two are not for students.

        Returns:
            A `Segmentation` at the image's own size, or a list of them for a list.

        Raises:
            MaskCLIPError: an image, a name or an option cannot be used.
        """
        checked = Options(**options)
        vocabulary = self.prepare(classes, background=background, options=checked)
        network = self.network(vocabulary, checked)
        several = images if isinstance(images, list | tuple) else [images]
        photos = [load_image(image) for image in several]
        with torch.inference_mode():
            found = segment_photos(photos, vocabulary, checked, network)
        return found if several is images else found[0]


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
