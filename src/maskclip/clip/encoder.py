"""DenseCLIP: images of any size in, one CLIP feature per grid position out."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from maskclip.clip.acceleration import (
    PLAIN,
    Accelerated,
    Ways,
    best_ways,
    fold_quick_gelu,
)
from maskclip.clip.model import DEFAULT_TEMPERATURE, CLIPModel, shared_copy
from maskclip.clip.proxy import Proxy
from maskclip.clip.towers import build_tower
from maskclip.core.dense import Again, Dense
from maskclip.core.device import LARGE
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import CLEAN, Method
from maskclip.core.methods import with_proxy

_PIXELS_AT_ONCE = 2 * 512**2
"""Of a batch, what a CPU is given at once: more would leave its caches (benchmarks/encoder.py)."""


class DenseCLIP(nn.Module):
    """The image tower of a CLIP of open_clip, which gives features at each position of a grid.

    It is a copy that shares the tower's weights: whatever a method, a dtype or a device changes in
    it, the tower and other encoders of it stay as they are. Only new values, as those that
    `load_state_dict` copies in, are those of all.

    Args:
        visual: `model.visual` of an open_clip model.
        method: the arithmetic.
        mean: the mean of red, green and blue, for pixels in [0, 1]: the model's own, used where the
            method does not bring its own.
        std: their standard deviation; as `mean`.
        temperature: the model's own, used where the method does not bring its own.
        proxy: the network whose patches' likeness the kernel `proxy` takes; None for other methods.

    Attributes:
        cell (int): pixels between two grid positions: the patch of a ViT, 32 or 64 for other
            towers.
        temperature (float): by which similarities with its features become probabilities.

    Raises:
        MaskCLIPError: nothing reads a tower of its family, or the tower cannot compute the method.

    Examples:
        A small CLIP of open_clip, here with random weights; `pretrained=` names trained ones:

        >>> import open_clip
        >>> import torch
        >>> tower = open_clip.create_model("ViT-S-32-alt").visual
        >>> pixels = {"mean": tower.image_mean, "std": tower.image_std}
        >>> encoder = maskclip.DenseCLIP(tower, **pixels).eval()
        >>> images = torch.zeros(2, 3, 224, 320, dtype=torch.uint8)
        >>> encoder.encode(images).features.shape  # one position every 32 px
        torch.Size([2, 256, 7, 10])
    """

    mean: Tensor
    std: Tensor
    normalize = True

    def __init__(
        self,
        visual: nn.Module,
        *,
        method: Method = CLEAN,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        temperature: float = DEFAULT_TEMPERATURE,
        proxy: Proxy | None = None,
    ) -> None:
        super().__init__()
        with_proxy(method, None if proxy is None else proxy.name)  # refuses one without the other
        self.proxy = None if proxy is None else shared_copy(proxy)
        self.visual = shared_copy(visual)
        self.method = method
        self.ways = PLAIN
        self._at_once: int | None = None  # pixels
        self.tower = build_tower(self.visual, method)
        self.cell = self.tower.cell
        self.class_token = self.tower.class_token
        self.temperature = temperature if method.temperature is None else method.temperature
        for name, values in (("mean", method.mean or mean), ("std", method.std or std)):
            buffer = torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    @classmethod
    def of(
        cls, clip: CLIPModel, *, method: Method = CLEAN, proxy: Proxy | None = None
    ) -> DenseCLIP:
        """Return the image tower of a loaded CLIP, in eval mode."""
        encoder = cls(
            clip.visual,
            method=method,
            mean=clip.mean,
            std=clip.std,
            temperature=clip.temperature,
            proxy=proxy,
        )
        return encoder.eval()

    def prepare(self, dtype: torch.dtype, *, ways: Ways | None = None) -> None:
        """Make the tower as fast as it gets for inference in `dtype`; it cannot be trained then.

        Branches are merged and BatchNorms folded in the precision that the weights have, and
        weights laid out as the family runs fastest.

        Args:
            dtype: of weights and features.
            ways: how it computes. By default as is fastest on this machine's CPU, by what was
                measured there; as torch does by itself on other devices, and in networks that are
                too small to gain.

        Examples:
            >>> encoder.prepare(torch.float32)
            >>> encoder.encode(images).features.dtype
            torch.float32
        """
        weights = list(self.visual.parameters())
        large = sum(weight.numel() for weight in weights) >= LARGE
        large_on_cpu = large and weights[0].device.type == "cpu"
        self._at_once = _PIXELS_AT_ONCE if large_on_cpu else None
        self.ways = ways or (best_ways(dtype) if large_on_cpu else PLAIN)
        merge_branches(self.visual)
        fold_batch_norms(self.visual)
        if self.ways.silu:
            fold_quick_gelu(self.visual)
        self.visual.to(memory_format=self.tower.layout).to(dtype)
        if self.proxy is not None:
            self.proxy.network.to(dtype)
        self.eval()

    def _computing(self) -> AbstractContextManager[object]:
        """Return the context in which torch computes in the encoder's ways."""
        if self.ways == PLAIN or torch.compiler.is_exporting():
            return nullcontext()
        return Accelerated(self.ways)

    def check_keys(self) -> None:
        """Refuse what needs keys, where the tower has none under its method.

        Raises:
            UnsupportedMethodError: it has none.
        """
        self.tower.check(keys=True)

    def check_size(self, height: int, width: int) -> None:
        """Refuse an image, of so many px, in which the method cannot work.

        Raises:
            UnsupportedMethodError: as SC-CLIP does where there are too few patches.
        """
        self.tower.check_size(height, width)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, D, h, w) of `encode`, and nothing else; for `torch.export`.

        Those of a method with a feedback are of its first pass.

        Examples:
            >>> encoder(images).shape
            torch.Size([2, 256, 7, 10])
        """
        return self.encode(images).features

    def encode(self, images: Tensor, *, keys: bool = False, image: bool = False) -> Dense:
        """Encode a batch of images, densely.

        Args:
            images: (B, 3, H, W) RGB; uint8, or floating point in [0, 1]; any H and W from 1 px.
            keys: also return the keys, which key smoothing needs.
            image: also return the images' own embeddings, which `surgery` needs.

        Returns:
            Features (B, D, h, w) of the grid, and what else was wanted.

        Raises:
            MaskCLIPError: the batch has another shape or dtype, or the tower has no keys under its
                method.

        Examples:
            >>> dense = encoder.encode(images, keys=True)
            >>> dense.keys.shape
            torch.Size([2, 384, 7, 10])
        """
        if keys:
            self.check_keys()
        if self._at_once is None or torch.compiler.is_exporting():
            return self._encode(images, keys=keys, image=image)
        parts = torch.split(images, max(1, self._at_once // max(1, math.prod(images.shape[2:]))))
        if len(parts) == 1:
            return self._encode(images, keys=keys, image=image)
        return Dense.join([self._encode(part, keys=keys, image=image) for part in parts])

    def _encode(self, images: Tensor, *, keys: bool, image: bool) -> Dense:
        normalized = self._normalize(images)
        with self._computing():
            vectors = None if self.proxy is None else self.proxy(unit_pixels(images), self.cell)
            seen = self.tower.dense(normalized, keys=keys, image=image, proxy=vectors)
        covered = self._covered(images, seen.features)
        again = None if seen.read is None else Again(images, seen.parts or {}, seen.read)
        return Dense(seen.features, seen.keys, covered, seen.image, again)

    def staged(self, images: Tensor) -> tuple[list[Tensor], Dense]:
        """Encode a batch, and return the maps (B, c, h, w) of finer grids too, the finest first.

        Their grids span what `covered` says, as that of the features does. ViTs have none.
        """
        with self._computing():
            finer, features = self.tower.staged(self._normalize(images))
        return finer, Dense(features, None, self._covered(images, features))

    def pool(self, images: Tensor) -> Tensor:
        """Return CLIP's ordinary image embeddings (B, D), of images of any size.

        Args:
            images: as `encode` takes them.

        Raises:
            MaskCLIPError: the batch has another shape or dtype.

        Examples:
            >>> encoder.pool(images).shape
            torch.Size([2, 256])
        """
        with self._computing():
            return self.tower.pooled(self._normalize(images))

    def _covered(self, images: Tensor, features: Tensor) -> tuple[int, int]:
        """Return the (height, width) in px that the grid of features spans."""
        if self.method.stretch:
            return images.shape[2], images.shape[3]
        return features.shape[2] * self.cell, features.shape[3] * self.cell

    def _normalize(self, images: Tensor) -> Tensor:
        weight = next(self.visual.parameters())
        normalized = normalize_pixels(images, self.mean, self.std)
        if torch.compiler.is_exporting():  # what runs the program decides on its layout
            return normalized.to(weight.dtype)
        return normalized.to(weight.dtype, memory_format=self.tower.layout)


def normalize_pixels(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Check a batch of images and normalise its pixels.

    Args:
        images: (B, 3, H, W) RGB; uint8, or floating point in [0, 1].
        mean, std: (1, 3, 1, 1), of pixels in [0, 1].

    Returns:
        (B, 3, H, W) float32.

    Raises:
        MaskCLIPError: the batch has another shape or dtype.
    """
    return (unit_pixels(images) - mean) / std


def unit_pixels(images: Tensor) -> Tensor:
    """Return a batch of images (B, 3, H, W), uint8 or floating point in [0, 1], as float32.

    Raises:
        MaskCLIPError: the batch has another shape or dtype.
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise MaskCLIPError(f"expected images (B, 3, H, W), got {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise MaskCLIPError(f"expected uint8 or floating-point images, got {images.dtype}")
    return images.float()


def merge_branches(module: nn.Module) -> None:
    """Turn branches of convolutions into one, in place; for inference alone.

    FastViT was trained with several beside each other, and timm knows what they come to.
    """
    if any(getattr(part, "reparam_conv", part) is None for part in module.modules()):
        from timm.utils.model import reparameterize_model  # other towers need no timm

        reparameterize_model(module, inplace=True)


def fold_batch_norms(module: nn.Module) -> None:
    """Fold every BatchNorm into the convolution before it, in place; for inference alone.

    A convolution whose parent names a BatchNorm as its next child is taken to feed it, as in
    CLIP's ResNets. What a norm of timm does after it, stays.
    """
    for parent in list(module.modules()):
        for (name, conv), (next_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, next_name, getattr(norm, "act", nn.Identity()))
