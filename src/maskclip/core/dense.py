"""Dense features, and what becomes of them: one map a class on the grid, then their refinement.

Pure functions on tensors. B images, P prompts, K classes, D channels, h x w positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip.core.method import Method
from maskclip.core.resize import Geometry

DROPPED = -100.0
"""The cosine given to a class that prompt denoising drops."""


@dataclass(frozen=True, eq=False)
class Dense:
    """What a network sees in images: the same for every CLIP, and for students.

    Attributes:
        features: (B, D, h, w), raw; cosine similarity normalises them.
        keys: (B, C, h, w), raw; None unless asked for.
        covered: the (height, width) in input pixels that the grid spans; larger than the input
            where padding was added, so that every cell keeps its true place.
    """

    features: Tensor
    keys: Tensor | None
    covered: tuple[int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Scoring:
    """What dense features are compared with, and what is made of that.

    Attributes:
        rows: (P, D) float32, one a prompt, of unit length.
        classes: the class of each row: ascending, every class of [0, K) at least once.
        method: the arithmetic.
        temperature: probabilities are softmax(temperature x similarity).
        normalize: compare by cosine (CLIP), or by the plain inner product (students).
        prompt_denoising, key_smoothing: thresholds in [0, 1]; None switches a step off.
        threshold: the constant map of a background that comes before all classes; None for none.
    """

    rows: Tensor
    classes: tuple[int, ...]
    method: Method
    temperature: float
    normalize: bool = True
    prompt_denoising: float | None = None
    key_smoothing: float | None = None
    threshold: float | None = None

    @property
    def needs_keys(self) -> bool:
        """Whether features alone will not do."""
        return self.key_smoothing is not None


def score(dense: Dense, scoring: Scoring) -> Tensor:
    """Turn dense features into what will be enlarged: one map a class.

    Compare with every row, give each class its best prompt, then denoise prompts, smooth keys, and
    add the background of a threshold.

    Returns:
        (B, K, h, w) float32, K + 1 maps with a background. Where the method enlarges
        probabilities, these. Else similarities, or after key smoothing probabilities where a
        position was sure and sums of them where it was not.

    Raises:
        ValueError: key smoothing without keys.
    """
    maps = similarity(dense.features, scoring.rows, normalize=scoring.normalize)
    maps = pool_synonyms(maps, scoring.classes)
    method, temperature = scoring.method, scoring.temperature
    if scoring.prompt_denoising is not None:
        maps = denoise_prompts(
            maps,
            scoring.prompt_denoising,
            temperature=temperature,
            keep_best=method.keep_best_class,
        )
    if scoring.key_smoothing is not None:
        if dense.keys is None:
            raise ValueError("key smoothing needs the encoder's keys: encode with keys=True")
        maps = smooth_keys(
            maps, dense.keys, scoring.key_smoothing, temperature=temperature, method=method
        )
    elif method.upsample == "probabilities":
        maps = probabilities(maps, temperature)
    if scoring.threshold is not None:
        maps = add_threshold_background(maps, scoring.threshold)
    return maps


def refine(maps: Tensor, guide: Tensor, geometry: Geometry) -> Tensor:
    """Refine a photo's maps by the photo itself. No method does so yet: they come back as they are.

    Args:
        maps: (n, K, h, w), those of n windows.
        guide: (3, H, W) uint8, the photo at the network's size.
        geometry: where the maps lie in it.

    Returns:
        (n, K, any grid), spanning the same windows.
    """
    return maps


def similarity(features: Tensor, rows: Tensor, *, normalize: bool = True) -> Tensor:
    """Compare every position's feature with every text row.

    Args:
        features: (B, D, h, w).
        rows: (P, D), unit length.
        normalize: cosine (CLIP); False takes the plain inner product (students of MaskCLIP+).

    Returns:
        (B, P, h, w) float32, in [-1, 1] when normalised.
    """
    features = features.float()
    if normalize:
        features = F.normalize(features, dim=1)
    return F.conv2d(features, rows.float()[:, :, None, None])


def pool_synonyms(maps: Tensor, prompt_class: tuple[int, ...]) -> Tensor:
    """Give each class the best of its prompts at every position.

    Args:
        maps: (B, P, h, w).
        prompt_class: the class of each prompt: ascending, every class of [0, K) at least once.

    Returns:
        (B, K, h, w); `maps` itself when every class has one prompt.
    """
    counts = torch.bincount(torch.tensor(prompt_class)).tolist()
    if len(counts) == len(prompt_class):
        return maps
    return torch.stack([part.amax(dim=1) for part in torch.split(maps, counts, dim=1)], dim=1)


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


def add_threshold_background(maps: Tensor, threshold: float) -> Tensor:
    """Prepend a background map of the constant `threshold`: it wins where all others are lower.

    Args:
        maps: (B, K, h, w) in the unit of `threshold` (clean: probabilities).
        threshold: the value under which a position is background.

    Returns:
        (B, K + 1, h, w).
    """
    return F.pad(maps, (0, 0, 0, 0, 1, 0), value=threshold)
