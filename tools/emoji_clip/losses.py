"""What training asks of a tiny CLIP, from images and their captions alone.

B images, K class names, P colour-object pairs, N = h w grid positions. Cosines arrive multiplied by
the model's logit scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -1e4  # a logit that no softmax counts


def contrast(logits: Tensor, captions: Sequence[str]) -> Tensor:
    """CLIP's loss on (B, B) image-caption cosines; equal captions are no rivals."""
    same = torch.tensor([[a == b for b in captions] for a in captions], device=logits.device)
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, NEVER)
    target = torch.arange(len(captions), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def dense_names(maps: Tensor, named: Tensor) -> tuple[Tensor, Tensor]:
    """Two losses that tie the positions of an image to the names in its caption.

    The first asks of every position that its class be one of the names (whichever); the second
    asks of every name that some position be its own: the best ones, one in sixteen.

    Args:
        maps: (B, K, N) cosines of dense features and class names.
        named: (B, K) bool, whether the caption has the name; each caption has one or more.
    """
    chances = maps.log_softmax(dim=1)
    inside = chances.masked_fill(~named[..., None], NEVER).logsumexp(dim=1)
    best = chances.topk(max(maps.shape[2] // 16, 1), dim=2).values.mean(dim=2)
    return -inside.mean(), -best[named].mean()


def dense_colors(maps: Tensor, named: Tensor, rivals: Tensor) -> Tensor:
    """Ask of every pair in a caption, a blue car, to be seen rather than the car's other colours.

    Args:
        maps: (B, P, N) cosines of dense features and pairs.
        named: (B, P) bool, whether the caption has the pair.
        rivals: (P, P) bool, whether two pairs are of the same object.
    """
    image, pair = named.nonzero(as_tuple=True)
    if len(image) == 0:
        return maps.sum() * 0
    best = maps.amax(dim=2)[image].masked_fill(~rivals[pair], NEVER)
    return F.cross_entropy(best, pair)
