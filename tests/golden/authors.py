"""The authors' pipeline from a decoded photo to labels, written again from its description.

Plain functions of OpenAI's weights: nothing of the product is in it. Held to the golden arrays by
`test_published.py`, so that it may speak for the authors' code on other photos.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[str, Tensor]
Read = Callable[[Tensor], Tensor]
"""Normalised images (1, 3, H, W) -> features (1, D, h, w)."""

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SCALE = (2048, 512)  # S3: VOC, COCO-Stuff, ADE20K


def scaled(pixels: np.ndarray, scale: tuple[int, int] = SCALE) -> np.ndarray:
    """Resize a photo (H, W, 3) uint8 into a long and a short side by OpenCV (S3)."""
    height, width = pixels.shape[:2]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    size = (int(width * factor + 0.5), int(height * factor + 0.5))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR))


def normalized(pixels: np.ndarray) -> Tensor:
    """Return (1, 3, H, W) of a photo (H, W, 3) uint8 RGB (S2)."""
    values = (pixels.astype(np.float32) - np.float64(MEAN)) * (1 / np.float64(STD))
    return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None]


def vit(state: State, *, heads: int = 3, patch: int = 16) -> Read:
    """Return how a ViT is read (V1 to V7)."""
    w = {key.removeprefix("visual."): value for key, value in state.items()}
    layers = 1 + max(int(key.split(".")[2]) for key in w if key.startswith("transformer."))

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def mlp(block: str, x: Tensor) -> Tensor:
        wide = F.gelu(linear(f"{block}.mlp.c_fc", norm(f"{block}.ln_2", x)))
        return x + linear(f"{block}.mlp.c_proj", wide)

    def attend(block: str, x: Tensor) -> Tensor:
        attention = f"{block}.attn"
        inner = F.linear(
            norm(f"{block}.ln_1", x),
            w[f"{attention}.in_proj_weight"],
            w[f"{attention}.in_proj_bias"],
        )
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in inner.chunk(3, dim=2))
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(dim=-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        return mlp(block, x + linear(f"{attention}.out_proj", mixed))

    def value_path(block: str, x: Tensor) -> Tensor:
        attention, width = f"{block}.attn", x.shape[-1]
        weight, bias = w[f"{attention}.in_proj_weight"], w[f"{attention}.in_proj_bias"]
        value = F.linear(norm(f"{block}.ln_1", x), weight[2 * width :], bias[2 * width :])
        return mlp(block, x + linear(f"{attention}.out_proj", value))

    def read(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % patch, 0, -height % patch))
        cells = F.conv2d(padded, w["conv1.weight"], stride=patch)
        grid = cells.shape[2:]
        x = torch.cat([w["class_embedding"].expand(1, 1, -1), cells.flatten(2).mT], dim=1)
        table = w["positional_embedding"]
        if len(table) != x.shape[1]:
            side = round((len(table) - 1) ** 0.5)
            maps = table[1:].T.reshape(1, -1, side, side)
            resized = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False)
            table = torch.cat([table[:1], resized[0].flatten(1).T])
        x = norm("ln_pre", x + table)
        for index in range(layers - 1):
            x = attend(f"transformer.resblocks.{index}", x)
        x = norm("ln_post", value_path(f"transformer.resblocks.{layers - 1}", x))
        return (x[:, 1:] @ w["proj"]).mT.unflatten(2, grid)

    return read


def resnet(tower: nn.Module) -> Read:
    """Return how a ResNet is read (R1 to R3), given its convolutions as a module."""

    def read(images: Tensor) -> Tensor:
        x = tower.stem(images)
        for stage in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            x = stage(x)
        pool = tower.attnpool
        for layer in (pool.v_proj, pool.c_proj):
            x = F.conv2d(x, layer.weight[:, :, None, None], layer.bias)
        return x

    return read


def logits(pixels: np.ndarray, read: Read, rows: Tensor, output: tuple[int, int]) -> Tensor:
    """Return what is compared at the size of the labels, (C, *output), of a photo as it is seen."""
    images = normalized(pixels)
    features = read(images)
    unit = features / features.norm(dim=1, keepdim=True)
    maps = F.conv2d(unit, rows[:, :, None, None])  # H1
    for size in (images.shape[2:], output):  # S1
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return maps[0]


def labels(pixels: np.ndarray, read: Read, rows: Tensor, output: tuple[int, int]) -> np.ndarray:
    """Return the labels (*output) of a photo (H, W, 3) uint8 RGB as it is seen."""
    return logits(pixels, read, rows, output).softmax(dim=0).argmax(dim=0).numpy()  # S4
