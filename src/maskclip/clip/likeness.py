"""Positions mixed by the likeness of vectors, whichever network they are of.

No n x n map is held: it is computed in bands of rows. B images, n positions, D channels of the
vectors that are compared, C channels of the values that are mixed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BAND = 1 << 24
"""Numbers that a band of rows of N x N numbers has at most: 64 MiB of float32."""


def bands(rows: int, columns: int) -> Iterator[slice]:
    """Cut `rows` into bands of at most `BAND` numbers; an exported program has one, of all."""
    if torch.compiler.is_exporting():
        yield slice(0, rows)
        return
    size = max(BAND // columns, 1)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def unit(x: Tensor) -> Tensor:
    """Return float32 vectors of unit length."""
    return F.normalize(x.float(), dim=2)


def attend_similar(
    vectors: Tensor,
    value: Tensor,
    sharpness: float,
    *,
    least: float | None = None,
    level: float = 1.0,
) -> Tensor:
    """Mix values by softmax(sharpness x (cosine - level x mean cosine)) over what is not below 0.

    Where all of it is, as of patches that are all alike, those most alike count.

    Args:
        vectors: (B, n, D) float32, of unit length.
        value: (B, n, C).
        sharpness: of the softmax.
        least: cosines under it count as 0, in the mean too; None cuts none.
        level: of the mean of all n x n cosines.
    """
    count, found = value.shape[1], []
    mean = level * _mean_cosine(vectors, least)[:, None, None]
    for band in bands(count, count):
        logits = sharpness * (_cosines(vectors, band, least) - mean)
        lowest = logits.amax(dim=2, keepdim=True).clamp_max(0)
        logits = logits.masked_fill(logits < lowest, -torch.inf)
        found.append(logits.softmax(dim=2).to(value.dtype) @ value)
    return torch.cat(found, dim=1)


def keep_to_themselves(vectors: Tensor, level: float) -> Tensor:
    """Return of which images (B,) `attend_similar` cuts all likeness, even that with oneself.

    Args:
        vectors: (B, n, D) float32, of unit length.
        level: of the mean of all n x n cosines.
    """
    return level * _mean_cosine(vectors, None) >= 1


def _cosines(vectors: Tensor, band: slice, least: float | None) -> Tensor:
    """Return those of a band of positions with all, (B, rows, n)."""
    cosines = vectors[:, band] @ vectors.mT
    return cosines if least is None else cosines.where(cosines >= least, 0)


def _mean_cosine(vectors: Tensor, least: float | None) -> Tensor:
    """Return the mean of all n x n cosines of each image, (B,)."""
    if least is None:
        return vectors.mean(dim=1).square().sum(dim=1)
    count = vectors.shape[1]
    sums = [_cosines(vectors, band, least).sum(dim=(1, 2)) for band in bands(count, count)]
    return torch.stack(sums).sum(dim=0) / count**2


def average_alike(x: Tensor, vectors: Tensor, threshold: float) -> Tensor:
    """Average each position over those whose unit vectors are alike, weighted by their cosine.

    Args:
        x: (B, n, C).
        vectors: (B, n, D) float32, of unit length.
        threshold: cosines under it count for nothing.
    """
    count, found = x.shape[1], []
    for band in bands(count, count):
        weight = _cosines(vectors, band, threshold)
        weight = weight / (weight.sum(dim=2, keepdim=True) + 1e-6)
        found.append(weight.to(x.dtype) @ x)
    return torch.cat(found, dim=1)
