"""What first maps give back to the network, that reads its last block again: classes of patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip.core.method import Feedback
from maskclip.core.refinement import pamr


def patch_classes(maps: Tensor, images: Tensor, covered: tuple[int, int], how: Feedback) -> Tensor:
    """Return the class of most pixels of each patch, after images refined their maps (PAMR).

    Args:
        maps: (B, K, h, w) cosines.
        images: (B, 3, H, W) RGB, as the network was given them.
        covered: the (height, width) in px that the grid spans.
        how: of a method.

    Returns:
        (B, h, w) int64 in [0, K], ties to the lower; K is that of pixels that are apart.
    """
    found = []
    for own, image in zip(maps, images, strict=True):
        size = image.shape[1:]
        large = F.interpolate(own[None], size=covered, mode="bilinear")[:, :, : size[0], : size[1]]
        large = pamr(large, image[None].float())[0]
        best, winner = large.mul_(how.temperature).softmax(dim=0).max(dim=0)
        winner[best < how.threshold] = 0 if how.unsure == "first" else len(own)
        found.append(_most(winner, (own.shape[1], own.shape[2]), covered, count=len(own) + 1))
    return torch.stack(found)


def _most(labels: Tensor, grid: tuple[int, int], covered: tuple[int, int], *, count: int) -> Tensor:
    """Return the label, of so many, that most pixels of each patch have, (h, w)."""
    height, width = labels.shape
    rows = torch.arange(height, device=labels.device) * grid[0] // covered[0]
    columns = torch.arange(width, device=labels.device) * grid[1] // covered[1]
    patch = rows[:, None] * grid[1] + columns
    votes = torch.bincount((patch * count + labels).flatten(), minlength=grid[0] * grid[1] * count)
    return votes.view(*grid, count).argmax(dim=2)
