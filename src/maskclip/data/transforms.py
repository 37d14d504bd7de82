"""The training augmentation of MaskCLIP+: an image and its labels, changed at random together.

The published pipeline, in its order: scale, crop, flip, distort colours, pad (published code, D2 to
D6). All randomness comes from a generator that the caller gives. Given the same draws, pixels and
labels equal the published ones: OpenCV scales both, as it did those.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torch import Tensor

from maskclip.core.config import Augmentation
from maskclip.core.errors import MaskCLIPError
from maskclip.core.resize import fit_within
from maskclip.core.samples import Ids
from maskclip.core.vocabulary import IGNORE

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB

PADDING = (124, 116, 104)
"""The whole RGB levels next to ImageNet's mean (123.675, 116.28, 103.53).

Published padding is exactly 0 after normalisation. Whole levels, which the network normalises
itself, miss that by at most 0.0083 of a channel's standard deviation.
"""

_REDRAWS = 10
_BRIGHTNESS = 32.0  # grey levels
_FACTOR = (0.5, 1.5)  # of contrast, and of saturation
_HUE = 18  # of OpenCV's 180 hues


def seeded(seed: int, position: int) -> np.random.Generator:
    """Return the randomness of one sample, its own for each seed and place in the training stream.

    It depends on nothing else, so that neither workers nor a resumed training change a sample.

    Args:
        seed: of the training, in [0, 2**32).
        position: which sample of the whole training it is, from 0 on, not of one epoch.

    Raises:
        MaskCLIPError: the seed is outside its range.
    """
    if not 0 <= seed < 2**32:  # beyond, (seed, position) pairs share streams
        raise MaskCLIPError(f"`seed`: expected a whole number from 0 to {2**32 - 1}, got {seed}")
    return np.random.default_rng(np.random.SeedSequence((seed, position)))


class Place(NamedTuple):
    """Where a crop lies in its image, in shares of its sides; beyond 1 is what was padded.

    Attributes:
        top, left, bottom, right: its borders.
        flipped: whether it is mirrored, left to right.
    """

    top: float
    left: float
    bottom: float
    right: float
    flipped: bool


class Augmented(NamedTuple):
    """A crop of an image.

    Attributes:
        pixels: (3, h, w) uint8.
        labels: (h, w) int64.
        place: where it lies in the image.
    """

    pixels: Tensor
    labels: Tensor
    place: Place


def augment(
    image: Image.Image,
    labels: Ids,
    config: Augmentation,
    *,
    generator: np.random.Generator,
    ignore: int = IGNORE,
) -> Augmented:
    """Scale, crop, flip, distort and pad an image and its labels (published code, D2 to D6).

    Args:
        image: RGB, W x H.
        labels: (H, W) class ids, `ignore`, or negative; all stay as they are.
        config: how much changes.
        generator: where the randomness comes from; it advances.
        ignore: the label that does not count.

    Returns:
        What is always of the crop's size; what the scaled image does not fill, at the bottom and
        the right, is PADDING and `ignore`.

    Raises:
        ValueError: the image is not RGB, or the labels have another size.
    """
    if image.mode != "RGB" or labels.shape != (image.height, image.width):
        raise ValueError(
            f"expected an RGB image and labels of its size, got mode {image.mode}, image "
            f"{(image.height, image.width)}, labels {labels.shape}"
        )
    size = _draw_size((image.height, image.width), config, generator)
    scaled = np.asarray(cv2.resize(np.asarray(image), size[::-1]), np.uint8)  # bilinear
    nearest = cv2.resize(labels.astype(np.int32), size[::-1], interpolation=cv2.INTER_NEAREST)
    pixels = torch.from_numpy(scaled).permute(2, 0, 1)
    ids = torch.from_numpy(np.asarray(nearest, np.int64))
    rows, columns = _draw_crop(ids, config, generator, ignore=ignore)
    pixels, ids = pixels[:, rows, columns], ids[rows, columns]
    flipped = bool(generator.random() < config.flip)
    if flipped:
        pixels, ids = TF.horizontal_flip(pixels), TF.horizontal_flip(ids)
    if config.distort:
        changed = distort(pixels.permute(1, 2, 0).contiguous().numpy(), generator)
        pixels = torch.from_numpy(changed).permute(2, 0, 1)
    return Augmented(
        _pad(pixels, config.crop, PADDING),
        _pad(ids[None], config.crop, (ignore,))[0],
        _place(size, config.crop, (rows.start, columns.start), flipped=flipped),
    )


def _place(
    size: tuple[int, int], crop: tuple[int, int], corner: tuple[int, int], *, flipped: bool
) -> Place:
    """Return where a crop with its upper left corner there lies in an image, all in px."""
    (top, left), (height, width) = corner, crop
    return Place(
        top / size[0], left / size[1], (top + height) / size[0], (left + width) / size[1], flipped
    )


def _draw_size(
    size: tuple[int, int], config: Augmentation, generator: np.random.Generator
) -> tuple[int, int]:
    """Return the (H, W) of an image, fitted into the scale times a random ratio."""
    ratio = generator.uniform(*config.ratio)
    long, short = (int(side * ratio) for side in config.scale)
    return fit_within(size, short=short, long=long)


def _draw_crop(
    labels: Tensor, config: Augmentation, generator: np.random.Generator, *, ignore: int
) -> tuple[slice, slice]:
    """Return random rows and columns of labels (H, W), short where these are (published code, D3).

    The crop after the last redraw is taken whatever it holds. Without labels all pixels have one
    value, which fills every crop: all redraws happen then, as published.
    """
    box = _draw_box(labels, config.crop, generator)
    if config.max_share < 1:
        for _ in range(_REDRAWS):
            if _largest_share(labels[box], ignore) < config.max_share:
                break
            box = _draw_box(labels, config.crop, generator)
    return box


def _draw_box(
    labels: Tensor, crop: tuple[int, int], generator: np.random.Generator
) -> tuple[slice, slice]:
    top, left = (
        int(generator.integers(max(0, length - window) + 1))
        for length, window in zip(labels.shape, crop, strict=True)
    )
    return slice(top, top + crop[0]), slice(left, left + crop[1])


def _largest_share(labels: Tensor, ignore: int) -> float:
    """Return the share of the most frequent of all values but `ignore`; 1 where there is none."""
    lowest = int(labels.min())
    counts = torch.bincount((labels - lowest).flatten())  # `unique` takes four times as long
    if 0 <= ignore - lowest < len(counts):
        counts[ignore - lowest] = 0
    total = int(counts.sum())
    return int(counts.max()) / total if total else 1.0


def distort(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Change brightness, contrast, saturation and hue, each or not by a coin (published code, D4).

    Another coin says whether contrast comes before saturation and hue, or after them. Every step
    ends in whole levels.

    Args:
        pixels: (H, W, 3) uint8 RGB; not changed.
        generator: where the randomness comes from.
    """
    if _coin(generator):
        pixels = brighten(pixels, generator.uniform(-_BRIGHTNESS, _BRIGHTNESS))
    contrast_first = _coin(generator)
    if contrast_first and _coin(generator):
        pixels = change_contrast(pixels, generator.uniform(*_FACTOR))
    if _coin(generator):
        pixels = saturate(pixels, generator.uniform(*_FACTOR))
    if _coin(generator):
        pixels = turn_hue(pixels, int(generator.integers(-_HUE, _HUE)))  # published: 18 is left out
    if not contrast_first and _coin(generator):
        pixels = change_contrast(pixels, generator.uniform(*_FACTOR))
    return pixels


def _coin(generator: np.random.Generator) -> bool:
    return bool(generator.integers(2))


def brighten(pixels: Pixels, levels: float) -> Pixels:
    """Add grey levels to every value of an image (H, W, 3)."""
    return _linear(offset=levels)[pixels]


def change_contrast(pixels: Pixels, factor: float) -> Pixels:
    """Multiply every value of an image (H, W, 3)."""
    return _linear(factor=factor)[pixels]


def saturate(pixels: Pixels, factor: float) -> Pixels:
    """Multiply the saturation of an RGB image (H, W, 3), in 256 levels."""
    return _change_hsv(pixels, 1, _linear(factor=factor))


def turn_hue(pixels: Pixels, steps: int) -> Pixels:
    """Turn the hue of an RGB image (H, W, 3), of which OpenCV has 180."""
    return _change_hsv(pixels, 0, ((np.arange(256) + steps) % 180).astype(np.uint8))


def _linear(*, factor: float = 1.0, offset: float = 0.0) -> npt.NDArray[np.uint8]:
    """Return what becomes of each of 256 levels: clipped, then cut (not rounded) to whole ones."""
    levels = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset)
    return levels.clip(0, 255).astype(np.uint8)


def _change_hsv(pixels: Pixels, channel: int, table: npt.NDArray[np.uint8]) -> Pixels:
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    hsv[..., channel] = table[hsv[..., channel]]
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)


def _pad(values: Tensor, size: tuple[int, int], fill: tuple[int, ...]) -> Tensor:
    """Pad (C, H, W) at the bottom and the right to `size`, with one value a channel."""
    padded = values.new_tensor(fill)[:, None, None].repeat(1, *size)
    padded[:, : values.shape[1], : values.shape[2]] = values
    return padded
