"""Refinements of class maps: by the photo, by the words, by keys, or by the maps alone.

Pure functions on tensors. B images, K classes, H x W pixels of an image, h x w grid positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip.core.method import Feedback, Method

DROPPED = -100.0
"""The cosine given to a class that prompt denoising drops."""
_LUMINANCE = (0.299, 0.587, 0.114)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_AROUND = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))
_BAND = 1 << 18
"""Numbers of a band of rows, of all classes: what fits into a processor's cache."""
_BESIDE = 8
"""Classes from which on a processor is quicker where the values of a pixel lie side by side."""
_TABLED = 1 << 21
"""Up to so many pixels: the table of neighbours is as large as their weights."""


PAMR_ITERATIONS = 10
PAMR_DILATIONS = (8, 16)
"""As NACLIP and its followers take them."""


def pamr(
    maps: Tensor,
    images: Tensor,
    *,
    iterations: int = PAMR_ITERATIONS,
    dilations: Sequence[int] = PAMR_DILATIONS,
) -> Tensor:
    """Let pixels take on what similar pixels near them have (PAMR, Araslanov and Roth, CVPR 2020).

    Each pixel has eight neighbours a dilation, at the border the image's edge again. What it gets
    of each is a softmax of their likeness: the mean over channels of -|difference| / (0.1 x the
    standard deviation around the pixel).

    Args:
        maps: (B, K, any grid), first enlarged to the images with their corners aligned.
        images: (B, C, H, W) float32; only ratios of differences count.
        iterations: how often; each reaches as far as the largest dilation.
        dilations: distances of the neighbours in px.

    Returns:
        (B, K, H, W): convex combinations of the values of each map.
    """
    size = images.shape[2:]
    maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
    offsets = [(dilation * y, dilation * x) for dilation in dilations for y, x in _AROUND]
    weights = _likeness(images, offsets, count=len(dilations))
    tabled = maps.shape[1] >= _BESIDE and size.numel() <= _TABLED
    if tabled and maps.device.type == "cpu" and maps.dtype == weights.dtype:
        pairs = zip(maps, weights, strict=True)
        return torch.stack([_gather_pixels(*pair, offsets, iterations) for pair in pairs])
    for _ in range(iterations):
        maps = _gather(maps, weights, offsets)
    return maps


def _likeness(images: Tensor, offsets: Sequence[tuple[int, int]], *, count: int) -> Tensor:
    """Return the weights (B, n, H, W) of the neighbours of each pixel; they sum to one.

    `count` is how often the pixel itself counts in the deviation around it.
    """
    reach = max(max(offset) for offset in offsets)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    total, squares = torch.zeros_like(images), torch.zeros_like(images)
    for offset in offsets:
        difference = _moved(padded, offset, reach) - images
        total += difference
        squares += difference.square()
    number = len(offsets) + count
    variance = (squares - total.square() / number).clamp_min_(0) / (number - 1)
    scale = 1 / (1e-8 + 0.1 * variance.sqrt_())
    logits = [
        -((_moved(padded, offset, reach) - images).abs_() * scale).mean(dim=1) for offset in offsets
    ]
    return torch.stack(logits, dim=1).softmax(dim=1)


def _gather(maps: Tensor, weights: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """Return the weighted sum of each pixel's neighbours, in bands that fit into a cache."""
    reach = max(max(offset) for offset in offsets)
    padded = F.pad(maps, (reach,) * 4, mode="replicate")
    result = torch.zeros_like(maps)
    height, width = maps.shape[2:]
    step = max(_BAND // (maps.shape[0] * maps.shape[1] * width), 1)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        band = result[:, :, rows]
        for index, (y, x) in enumerate(offsets):
            near = padded[
                :, :, reach + y + rows.start : reach + y + rows.stop, reach + x : reach + x + width
            ]
            band.addcmul_(near, weights[:, index : index + 1, rows])
    return result


def _gather_pixels(
    maps: Tensor, weights: Tensor, offsets: Sequence[tuple[int, int]], iterations: int
) -> Tensor:
    """Do for one image (K, H, W) what `_gather` does, `iterations` times, to the same numbers.

    The values of a pixel lie side by side, and each looks those of its neighbours up in a table.
    """
    height, width = maps.shape[1:]
    down, across = torch.tensor(offsets, dtype=torch.int32).T
    y = (torch.arange(height, dtype=torch.int32)[:, None] + down).clamp_(0, height - 1)
    x = (torch.arange(width, dtype=torch.int32)[:, None] + across).clamp_(0, width - 1)
    table = (y[:, None] * width + x).flatten(0, 1)  # HW x n
    values, shares = (part.flatten(1).T.contiguous() for part in (maps, weights))
    for _ in range(iterations):
        values = F.embedding_bag(table, values, per_sample_weights=shares, mode="sum")
    return values.T.reshape(maps.shape)


def _moved(padded: Tensor, offset: tuple[int, int], reach: int) -> Tensor:
    """Return what lies at an offset from each pixel of an image that was padded by `reach`."""
    height, width = (side - 2 * reach for side in padded.shape[2:])
    y, x = (reach + part for part in offset)
    return padded[:, :, y : y + height, x : x + width]


def propagate(
    maps: Tensor, images: Tensor, own: Tensor, *, grid: int = 80, iterations: int = 25
) -> Tensor:
    """Smooth maps where the photo is smooth and the classes are sure (PEARL's propagation).

    Solves (C + L) X = C maps by conjugate gradients, where C is how sure a position is of a class,
    and the Laplacian L ties neighbours that look alike and agree.

    Args:
        maps: (B, K, H, W) similarities.
        images: (B, 3, H, W) RGB in [0, 1]; its channels are weighted as those that CLIP sees.
        own: (K,), of `own_weights`.
        grid: about how many positions an axis has in the system; images that are larger are
            averaged to it.
        iterations: of conjugate gradients.

    Returns:
        (B, K, H, W).
    """
    size = maps.shape[2:]
    cell = tuple(max(round(side / grid), 1) for side in size)
    weights = images.new_tensor(_LUMINANCE) / images.new_tensor(CLIP_STD)
    gray = torch.einsum("bchw,c->bhw", images, weights)[:, None]
    if cell != (1, 1):
        maps, gray = F.avg_pool2d(maps, cell), F.avg_pool2d(gray, cell)
    probs = maps.softmax(dim=1)
    own = own.view(1, -1, 1, 1)
    sure = probs.amax(dim=1, keepdim=True).clamp_min(0.05).square()
    sure = sure * (1 + (own * probs.square()).sum(dim=1, keepdim=True))
    across = _ties(gray, probs, own, dim=3)
    down = _ties(gray, probs, own, dim=2)

    def system(x: Tensor) -> Tensor:
        out = sure * x
        for ties, dim in ((across, 3), (down, 2)):
            flow = ties * x.diff(dim=dim)
            length = x.shape[dim] - 1
            out.narrow(dim, 1, length).add_(flow)
            out.narrow(dim, 0, length).sub_(flow)
        return out

    solved = _conjugate_gradients(system, sure * maps, maps, iterations)
    return F.interpolate(solved, size=size, mode="bilinear", align_corners=False)


def own_weights(rows: Tensor) -> Tensor:
    """Return the weight (K,) of each class in agreement: the diagonal of the normalised likeness.

    Args:
        rows: (K, D) the classes' text rows, of unit length.
    """
    likeness = (rows @ rows.T / 0.5).softmax(dim=1)
    likeness = likeness + 10 * torch.eye(len(rows), device=rows.device)
    return likeness.diagonal() / (likeness.sum(dim=1) + 1e-6)


def _ties(gray: Tensor, probs: Tensor, own: Tensor, *, dim: int) -> Tensor:
    """Return how much neighbours along an axis are tied, in [0, 1]."""
    step = gray.diff(dim=dim).abs()
    mean = step.mean(dim=(1, 2, 3), keepdim=True)
    length = probs.shape[dim] - 1
    agree = own * probs.narrow(dim, 1, length) * probs.narrow(dim, 0, length)
    tied = torch.exp(-5 * step / (mean + 1e-6)) * (1 + agree.sum(dim=1, keepdim=True))
    return tied.clamp(0, 1)


def _conjugate_gradients(
    system: Callable[[Tensor], Tensor], target: Tensor, start: Tensor, iterations: int
) -> Tensor:
    """Solve a symmetric positive system, for every image of a batch alone."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=(1, 2, 3), keepdim=True)

    solved, residual = start, target - system(start)
    direction, squared = residual, product(residual, residual)
    for _ in range(iterations):
        image = system(direction)
        step = squared / (product(direction, image) + 1e-12)
        solved, residual = solved + step * direction, residual - step * image
        before, squared = squared, product(residual, residual)
        direction = residual + squared / (before + 1e-12) * direction
    return solved


def remove_redundant(maps: Tensor, whole: Tensor, *, sharpness: float = 2.0) -> Tensor:
    """Return similarities without what all classes share (CLIP Surgery's feature surgery).

    Each class's similarity, weighted by how much the whole image is of the class, less the mean
    of these over the classes.

    Args:
        maps: (B, K, h, w) cosines.
        whole: (B, K) cosines of the images' own embeddings with the classes.
        sharpness: of the softmax over the classes that gives the weights.

    Returns:
        (B, K, h, w).
    """
    weights = (sharpness * whole).softmax(dim=1)
    weights = weights / weights.mean(dim=1, keepdim=True)
    maps = weights[:, :, None, None] * maps
    return maps - maps.mean(dim=1, keepdim=True)


def add_mean(maps: Tensor, share: float = 0.5) -> Tensor:
    """Add a share of its mean to each class's map: (B, K, h, w).

    What is all over a photo, a little, is more often there than what is in one spot alone.
    """
    return maps + share * maps.mean(dim=(2, 3), keepdim=True)


def probabilities(maps: Tensor, temperature: float) -> Tensor:
    """Return softmax(temperature x similarity) over the classes; (B, K, h, w)."""
    return (temperature * maps).softmax(dim=1)


def denoise_prompts(
    maps: Tensor, threshold: float, *, temperature: float, keep_best: bool
) -> Tensor:
    """Drop the classes that are nowhere in an image (paper, section 3.2; published code, H2).

    A class whose largest probability over the positions lies under `threshold` gets the cosine
    -100 everywhere in that image.

    Args:
        maps: (B, K, h, w) cosines.
        threshold: in [0, 1].
        temperature: of the probabilities.
        keep_best: keep the best class of an image where every class would be dropped.

    Returns:
        (B, K, h, w) cosines; the argument is not changed.
    """
    best = probabilities(maps, temperature).amax(dim=(2, 3))  # B x K
    dropped = best < threshold
    if keep_best:
        winner = F.one_hot(best.argmax(dim=1), best.shape[1]).bool()
        dropped = dropped & ~(dropped.all(dim=1, keepdim=True) & winner)
    return maps.masked_fill(dropped[:, :, None, None], DROPPED)


def smooth_keys(
    maps: Tensor, keys: Tensor, threshold: float, *, temperature: float, method: Method
) -> Tensor:
    """Let unsure positions borrow from positions with similar keys (paper, section 3.2; published
    code, H3).

    With P the probabilities (hw x K) and N the normalised keys (hw x C), positions whose best
    probability lies under `threshold` become N (N^T P): the hw x hw affinity is never built.
    A method with `smoothed_probabilities` divides by the row sum N (N^T 1); negative affinities
    may push a value under zero, which is cut, and a position whose affinities do not sum to
    something positive stays as it was.

    Args:
        maps: (B, K, h, w) cosines.
        keys: (B, C, h, w).
        threshold: in [0, 1]; 1 smooths nearly every position.
        temperature: of the probabilities.
        method: `normalize_keys` and `smoothed_probabilities` are read.

    Returns:
        (B, K, h, w): probabilities, or unscaled sums of them for the published method.
    """
    probs = probabilities(maps, temperature)
    flat = probs.flatten(2).transpose(1, 2)  # B x hw x K
    over = 2 if method.normalize_keys == "channels" else 1
    unit = F.normalize(keys.float().flatten(2).transpose(1, 2), dim=over)  # B x hw x C
    smoothed = unit @ (unit.transpose(1, 2) @ flat)
    unsure = flat.amax(dim=2, keepdim=True) < threshold
    if method.smoothed_probabilities:
        weight = unit @ unit.sum(dim=1).unsqueeze(2)  # B x hw x 1
        # Unit keys give a position its own weight of 1: less in total means others outvoted it.
        reliable = weight > 1e-3
        smoothed = (smoothed / weight.where(reliable, weight.new_ones(()))).clamp_min(0)
        smoothed = smoothed / smoothed.sum(dim=2, keepdim=True).clamp_min(1e-12)
        unsure = unsure & reliable
    result = torch.where(unsure, smoothed, flat)
    return result.transpose(1, 2).reshape(probs.shape)


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
