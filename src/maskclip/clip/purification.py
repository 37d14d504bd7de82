"""The last block of a ViT read by repaired patches (SC-CLIP; SFP).

Some patches of a ViT hold what is of the whole image, and those around attend to them: outliers.
They are found and repaired by their neighbours; then patches are averaged over those that an
earlier block finds alike. Everything is done for each image alone, in bands of rows.
B images, n = hw patches, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip.clip.attention import (
    Reading,
    mix,
    run_block,
    split,
    weighted_sum,
)
from maskclip.clip.blocks import Block
from maskclip.clip.likeness import attend_similar, average_alike, bands, unit
from maskclip.core.method import NEIGHBORS, Method


def read_purified(
    blocks: Sequence[Block],
    x: Tensor,
    method: Method,
    *,
    grid: tuple[int, int],
    prefix: int = 1,
) -> Reading:
    """Run all blocks of a ViT, and read the last one by repaired patches; there are no keys.

    Args:
        blocks: of the network.
        x: tokens (B, N, C), the class token first if there is one.
        method: with a `purification`.
        grid: (h, w).
        prefix: whether there is one: 0 or 1.
    """
    how = method.purification
    assert how is not None
    first, last = how.stages[0], min(how.stages[1], len(blocks) - 2)
    summed: Tensor | None = None
    for index, block in enumerate(blocks[:-1]):
        before, x = x, run_block(block, x)
        if index == how.similarity:
            similar = x[:, prefix:]
        if index == first:
            early = unit(x[:, prefix:])
        if first <= index <= last:
            summed = x if summed is None else summed + x
    assert summed is not None
    patches = x[:, prefix:]
    if how.outliers == "density":
        outliers = largest(outlier_factor(patches), how.share)
    else:
        outliers = attended(blocks[-2], before, weight=how.class_weight, most=how.most)
    alike = unit(repair(similar, outliers, grid))
    repaired = average_alike(repair(patches, outliers, grid), alike, how.threshold)
    out = _attend_patches(blocks[-1], repaired, x[:, :prefix], alike, method)
    out = out + _attend_patches(blocks[-1], summed[:, prefix:], summed[:, :prefix], alike, method)
    return Reading(average_alike(out, early, how.threshold), None, x)


def _attend_patches(
    block: Block, patches: Tensor, class_token: Tensor, alike: Tensor, method: Method
) -> Tensor:
    """Return what a block's attention makes of patches (B, n, C), with a share of the class.

    `class_token` is (B, 1, C), or (B, 0, C) where there is none.
    """
    how = method.purification
    assert how is not None
    parts = block.project(block.enter(patches))

    def by(name: str) -> Tensor:
        if name == "similar":
            least = how.threshold if how.cut_similarities else None
            return attend_similar(alike, parts["value"], how.sharpness, least=least)
        return mix(parts, ((name, 1.0),), heads=block.heads)

    mixed = weighted_sum((by(name), weight) for name, weight in method.kernels)
    return block.output(mixed) + how.class_token * class_token.sum(dim=1, keepdim=True)


def outlier_factor(patches: Tensor) -> Tensor:
    """Return how much less dense it is around a patch than around its neighbours, (B, n) float32.

    A local outlier factor of 30 neighbours by squared distance, in which the reach of a patch to
    each neighbour is its own distance to the 30th.
    """
    x = patches.float()
    norm = x.square().sum(dim=2)
    reach, nearest = [], []
    for band in bands(x.shape[1], x.shape[1]):
        squared = norm[:, band, None] + norm[:, None] - 2 * x[:, band] @ x.mT
        rows = torch.arange(band.start, band.stop, device=x.device)
        squared[:, rows - band.start, rows] = torch.inf  # a patch is no neighbour of its own
        distance, found = squared.clamp_min(0).topk(NEIGHBORS, dim=2, largest=False)
        reach.append(distance[:, :, -1])
        nearest.append(found)
    density = 1 / torch.cat(reach, dim=1).clamp_min(1e-12)
    index = torch.cat(nearest, dim=1)  # B x n x 30
    around = density.gather(1, index.flatten(1)).reshape(index.shape)
    factor: Tensor = around.mean(dim=2) / density
    return factor


def attended(block: Block, x: Tensor, *, weight: float, most: int) -> Tensor:
    """Return which patches the class token attends to in a block more than they do: (B, n) bool.

    Args:
        block: of the network.
        x: tokens (B, 1 + n, C) that enter it.
        weight: by which the attention of the class token is multiplied before it is compared.
        most: so many patches of an image, those that get most of it.
    """
    heads = block.heads
    parts = block.project(block.enter(x), {"query", "key"})
    query, key = (split(parts[name], heads) for name in ("query", "key"))
    scale = query.shape[3] ** -0.5
    of_class = (query[:, :, :1] @ key.mT).float().mul_(scale).softmax(dim=3).mean(dim=1)[:, 0, 1:]
    own = []
    for band in bands(x.shape[1], heads * x.shape[1]):
        weights = (query[:, :, band] @ key.mT).float().mul_(scale).softmax(dim=3).mean(dim=1)
        own.append(weights.diagonal(band.start, dim1=1, dim2=2))
    excess = (weight * of_class).where(weight * of_class > torch.cat(own, dim=1)[:, 1:], 0)
    count = min(most, excess.shape[1])
    values, index = excess.topk(count, dim=1)
    return torch.zeros_like(excess, dtype=torch.bool).scatter(1, index, values > 0)


def largest(scores: Tensor, share: float) -> Tensor:
    """Return which scores (B, n) lie above the quantile that leaves a share of them: bool."""
    return scores > scores.quantile(1 - share, dim=1, keepdim=True)


def repair(patches: Tensor, outliers: Tensor, grid: tuple[int, int]) -> Tensor:
    """Replace outliers by the mean of their sound neighbours on the grid, of at most eight.

    Args:
        patches: (B, n, C).
        outliers: (B, n) bool; one without a sound neighbour stays as it is.
        grid: (h, w), h w = n.
    """
    sound = (~outliers).to(patches.dtype).view(-1, 1, *grid)
    maps = patches.mT.reshape(patches.shape[0], -1, *grid)
    around = 9 * F.avg_pool2d(maps * sound, 3, stride=1, padding=1)
    count = 9 * F.avg_pool2d(sound, 3, stride=1, padding=1)
    # an outlier itself counts for nothing in either sum
    replaced = ((sound == 0) & (count > 0.5)).expand_as(maps)
    return torch.where(replaced, around / count.clamp_min(1), maps).flatten(2).mT
