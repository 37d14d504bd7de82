"""Photos through any network that gives maps: sizes, windows and batches, labels at full size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from maskclip.core import resize
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

Maps = tuple[Tensor, tuple[int, int]]
"""Maps (B, K, h, w) of B crops, and the (height, width) in px that they cover."""


@dataclass(frozen=True, kw_only=True)
class View:
    """How a network sees photos, and how its maps become labels.

    Attributes:
        short_side: the working size in px.
        antialias: whether shrinking filters out what is too fine for the new size.
        resizes: from grid to image: 1, or 2 by way of the size that the network saw.
        device: where the network is.
    """

    short_side: int
    antialias: bool
    resizes: int
    device: torch.device


def as_vocabulary(classes: Classes) -> Vocabulary:
    """Return a vocabulary from one, or from names such as `-c` takes them."""
    if isinstance(classes, Vocabulary):
        return classes
    return Vocabulary.parse(classes)


def segment_photos(
    photos: list[Image.Image],
    vocabulary: Vocabulary,
    options: Options,
    view: View,
    read: Callable[[Tensor], Maps],
) -> list[Segmentation]:
    """Segment photos in batches of those that the network sees at the same size.

    Args:
        photos: RGB, of any sizes.
        vocabulary: one class a map.
        options: sizes and windows are read.
        view: how photos become the network's input.
        read: the network: up to `BATCH` crops (B, 3, h, w) uint8 of one shape -> their maps.
    """
    results: dict[int, Segmentation] = {}
    for size, members in _by_network_size(photos, options, view).items():
        windows = cut(size, window=options.window, stride=options.stride)
        batch = max(1, BATCH // len(windows))
        for start in range(0, len(members), batch):
            group = members[start : start + batch]
            images = torch.stack([_network_input(photos[i], size, view) for i in group])
            crops = torch.cat(
                [images[:, :, r.start : r.stop, c.start : c.stop] for r, c in windows]
            )
            maps, covered = _in_batches(crops, read)
            maps = maps.reshape(len(windows), len(group), *maps.shape[1:])
            for position, index in enumerate(group):
                photo = photos[index]
                geometry = resize.Geometry(
                    windows, covered, size, (photo.height, photo.width), view.resizes
                )
                labels, scores = resize.label(maps[:, position], geometry)
                results[index] = _segmentation(labels, scores, photo, vocabulary)
    return [results[index] for index in range(len(photos))]


def _in_batches(crops: Tensor, read: Callable[[Tensor], Maps]) -> Maps:
    parts = [read(crops[start : start + BATCH]) for start in range(0, len(crops), BATCH)]
    return torch.cat([maps for maps, _ in parts]), parts[0][1]


def _by_network_size(
    photos: list[Image.Image], options: Options, view: View
) -> dict[tuple[int, int], list[int]]:
    """Group the photos' indices by the (h, w) at which the network sees them."""
    short = view.short_side if options.short_side is None else options.short_side
    long = LONG_SIDE_RATIO * short if options.long_side is None else options.long_side
    groups: dict[tuple[int, int], list[int]] = {}
    for index, photo in enumerate(photos):
        size = (photo.height, photo.width)
        if short:
            size = fit_within(size, short=short, long=long)
        groups.setdefault(size, []).append(index)
    return groups


def _network_input(photo: Image.Image, size: tuple[int, int], view: View) -> Tensor:
    """Return the photo at the network's size, (3, h, w) uint8 on the device."""
    if view.antialias and photo.size != (size[1], size[0]):
        photo = photo.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    if tuple(pixels.shape[1:]) != size:
        smooth = F.interpolate(pixels[None].float(), size=size, mode="bilinear")
        pixels = smooth[0].round().to(torch.uint8)
    return pixels.to(view.device)


def _segmentation(
    labels: Tensor, scores: Tensor, photo: Image.Image, vocabulary: Vocabulary
) -> Segmentation:
    indices = labels.cpu().numpy()
    narrow = vocabulary.label_dtype is np.uint8
    return Segmentation(
        labels=indices.astype(np.uint8) if narrow else indices.astype(np.uint16),
        scores=scores.cpu().numpy(),
        vocabulary=vocabulary,
        image=photo,
    )
