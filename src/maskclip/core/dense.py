"""Dense features, and what becomes of them: one map a class on the grid, then their refinement.

Pure functions on tensors. B images, P prompts, K classes, D channels, h x w positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip.core import resize
from maskclip.core.config import BY_PHOTO
from maskclip.core.method import Method
from maskclip.core.refinement import (
    PAMR_DILATIONS,
    PAMR_ITERATIONS,
    add_mean,
    denoise_prompts,
    own_weights,
    pamr,
    patch_classes,
    probabilities,
    propagate,
    remove_redundant,
    smooth_keys,
)
from maskclip.core.resize import Geometry, enlarge, fit_within

Read = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""(parts, classes of the patches (B, h, w) int64) -> features (B, D, h, w)."""


@dataclass(frozen=True, eq=False)
class Again:
    """What reads the last block of a network once more, when first maps are known (`Feedback`).

    Attributes:
        images: (B, 3, H, W) RGB, as the network was given them.
        parts: what it reads, (B, ...) each.
        read: does it.
    """

    images: Tensor
    parts: Mapping[str, Tensor]
    read: Read


@dataclass(frozen=True, eq=False)
class Dense:
    """What a network sees in images, on a grid of h x w positions: of `DenseCLIP.encode`.

    Attributes:
        features: (B, D, h, w), not normalised: cosine similarity does that.
        keys: (B, C, h, w) of the last attention, not normalised; None unless wanted.
        covered: the (height, width) in input pixels that the grid spans; larger than the input
            where padding was added, so that every cell keeps its true place.
        image: (B, D), the images' own embeddings, not normalised; None unless wanted.
        again: what reads the images again for the words they are compared with: `features` are
            those of a first pass then. None where a method has no feedback.

    Examples:
        >>> encoded = maskclip.load("emoji-vit").encode("photo.jpg", keys=True)
        >>> dense = encoded.dense
        >>> dense.features.shape, dense.keys.shape, dense.covered
        (torch.Size([1, 192, 16, 16]), torch.Size([1, 256, 16, 16]), (256, 256))
    """

    features: Tensor
    keys: Tensor | None
    covered: tuple[int, int]
    image: Tensor | None = None
    again: Again | None = None

    @staticmethod
    def join(several: Sequence[Dense]) -> Dense:
        """Return several batches of images of one size as one."""
        return _each(torch.cat, several)

    def part(self, images: slice) -> Dense:
        """Return some images of the batch, in memory of their own: the rest may be let go."""
        return _each(lambda whole: _own(whole[0][images]), [self])


def _each(change: Callable[[list[Tensor]], Tensor], several: Sequence[Dense]) -> Dense:
    """Return what becomes of the same tensor of several batches, for every tensor they have."""
    first = several[0]

    def changed(tensor: Callable[[Dense], Tensor | None]) -> Tensor | None:
        found = [one for one in map(tensor, several) if one is not None]
        return change(found) if found else None

    again = first.again
    if again is not None:
        found = [dense.again for dense in several if dense.again is not None]
        parts = {name: change([one.parts[name] for one in found]) for name in again.parts}
        again = replace(again, images=change([one.images for one in found]), parts=parts)
    features = change([dense.features for dense in several])
    keys, image = changed(lambda dense: dense.keys), changed(lambda dense: dense.image)
    return Dense(features, keys, first.covered, image, again)


def _own(part: Tensor) -> Tensor:
    return part.clone() if part.untyped_storage().nbytes() > part.nbytes else part


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
        threshold: under which a pixel is a background that comes before all classes: the constant
            value of its map, or the probability where prompts compete; None for none.
        refine: names of `core.config.REFINEMENTS`, in the order in which they are done; those by
            the photo after the others.
        refine_size: the short side in px at which the photo refines the maps; None is the size that
            the network saw, 0 that of the labels.
        pamr_iterations, pamr_dilations: of `pamr`; None are the published ones.
        own: (K,), what `class_agreement` is where the rows do not say what the words mean.
    """

    rows: Tensor
    classes: tuple[int, ...]
    method: Method
    temperature: float
    normalize: bool = True
    prompt_denoising: float | None = None
    key_smoothing: float | None = None
    threshold: float | None = None
    refine: tuple[str, ...] = ()
    refine_size: int | None = None
    pamr_iterations: int | None = None
    pamr_dilations: tuple[int, ...] | None = None
    own: Tensor | None = None

    @property
    def by_photo(self) -> tuple[str, ...]:
        """The refinements that are done by the photo, on maps as large as it."""
        return tuple(name for name in self.refine if name in BY_PHOTO)

    @property
    def prompts_compete(self) -> bool:
        """Whether each prompt has a map of its own up to the labels, where classes pool them."""
        refined = self.prompt_denoising is not None or self.key_smoothing is not None
        return self.method.upsample == "prompts" and not refined

    @property
    def needs_keys(self) -> bool:
        """Whether features alone will not do."""
        return self.key_smoothing is not None

    @property
    def needs_image(self) -> bool:
        """Whether the images' own embeddings are needed too."""
        return "surgery" in self.refine


def score(dense: Dense, scoring: Scoring) -> Tensor:
    """Turn dense features into what will be enlarged: one map a class.

    Compare with every row, give each class its best prompt, then refine by the whole image or by
    means, denoise prompts, smooth keys, and add the background of a threshold. With a feedback, the
    last block is read again by the first of these maps.

    Returns:
        (B, K, h, w) float32, K + 1 maps with a background. Where the method enlarges
        probabilities, these. Else similarities, or after key smoothing probabilities where a
        position was sure and sums of them where it was not. What the photo is to refine are
        similarities without a background: `refine` does the rest. Where prompts compete, (B, P, h,
        w) similarities without a background: `label` does the rest.

    Raises:
        ValueError: key smoothing without keys, or surgery without the images' own embeddings.
    """
    maps = _compared(read_again(dense, scoring).features, scoring)
    for name in scoring.refine:
        if name == "surgery":
            if dense.image is None:
                raise ValueError("surgery needs the images' embeddings: encode with image=True")
            whole = _compared(dense.image[:, :, None, None], scoring)
            maps = remove_redundant(maps, whole[:, :, 0, 0])
        elif name == "dominant":
            maps = add_mean(maps)
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
    return maps if scoring.by_photo else finish(maps, scoring)


def read_again(dense: Dense, scoring: Scoring) -> Dense:
    """Return what a network sees when it knows its first maps of the classes.

    `score` does that itself; where nothing is read again, it is the argument.
    """
    again, how = dense.again, scoring.method.feedback
    if again is None or how is None:
        return dense
    maps = _compared(dense.features, scoring)
    classes = patch_classes(maps, again.images, dense.covered, how)
    return replace(dense, features=again.read(again.parts, classes), again=None)


def _compared(features: Tensor, scoring: Scoring) -> Tensor:
    """Return similarities (B, K, h, w) with the classes, or with the prompts if these compete."""
    maps = similarity(features, scoring.rows, normalize=scoring.normalize)
    return maps if scoring.prompts_compete else pool_synonyms(maps, scoring.classes)


def finish(maps: Tensor, scoring: Scoring) -> Tensor:
    """Return the probabilities, where a method enlarges these, with the background's map.

    `score` does that itself, but for maps that the photo is to refine.
    """
    smoothed = scoring.key_smoothing is not None
    if scoring.method.upsample == "probabilities" and not smoothed:
        maps = probabilities(maps, scoring.temperature)
    if scoring.threshold is not None and not scoring.prompts_compete:
        maps = add_threshold_background(maps, scoring.threshold)
    return maps


def label(
    maps: Tensor, geometry: Geometry, scoring: Scoring, *, dtype: torch.dtype = torch.int32
) -> tuple[Tensor, Tensor]:
    """Enlarge maps to the output, average them where windows overlap, and take the best class.

    Where prompts compete, the softmax at the output's size runs over all of them, a class has its
    best prompt's probability, classes of too small an area lose their pixels, and pixels of too
    small a probability become class 0 (or the background that comes before all classes).

    Args:
        maps: (n, K or P, h, w) float32 of `score` and `refine`, those of n windows.
        geometry: where they lie.
        scoring: by which they were made.
        dtype: of the labels.

    Returns:
        labels (H, W), ties to the lower class; scores (H, W) float32, the winner's value.
    """
    if not scoring.prompts_compete:
        return resize.label(maps, geometry, dtype=dtype)
    method = scoring.method
    labels, scores = _compete(maps, geometry, scoring, dtype=dtype)
    if method.area_threshold:
        first = 1 if scoring.threshold is None else 0  # the background keeps its pixels
        pixels = torch.bincount(labels.flatten().long(), minlength=scoring.classes[-1] + 1)
        small = pixels <= method.area_threshold * pixels[first:].sum()
        small[:first] = False
        if (small & (pixels > 0)).any():
            labels, scores = _compete(maps, geometry, scoring, dtype=dtype, without=small)
    least = method.probability_threshold
    if scoring.threshold is not None:
        labels, least = labels + 1, scoring.threshold
    labels[scores < least] = 0
    return labels, scores


def _compete(
    maps: Tensor,
    geometry: Geometry,
    scoring: Scoring,
    *,
    dtype: torch.dtype,
    without: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the classes of the best prompts (H, W) and their probabilities, band by band.

    `without` (K,) says which classes have a probability of 0.
    """
    labels = torch.empty(geometry.output, dtype=dtype, device=maps.device)
    scores = torch.empty(geometry.output, dtype=torch.float32, device=maps.device)
    for rows, values in resize.bands(maps, geometry):
        # The softmax keeps the order of prompts: only the winner's probability is needed.
        pooled = pool_synonyms(values[None], scoring.classes)[0]
        best, winner = pooled.max(dim=0)
        top = best
        if without is not None:
            best, winner = pooled.masked_fill(without[:, None, None], -torch.inf).max(dim=0)
        total = values.sub_(top).mul_(scoring.temperature).exp_().sum(dim=0)
        labels[rows] = winner.to(dtype)
        scores[rows] = (scoring.temperature * (best - top)).exp_() / total
    return labels, scores


def refine(
    maps: Tensor, guide: Tensor, geometry: Geometry, scoring: Scoring
) -> tuple[Tensor, Geometry]:
    """Refine a photo's maps by the photo itself, if the scoring says so.

    Args:
        maps: (n, K or P, h, w) of `score`, those of n windows.
        guide: (3, H, W) uint8, the photo at the network's size.
        geometry: where the maps lie in it.
        scoring: by which the maps were made.

    Returns:
        (1, K or P, h, w) maps of the whole photo, and where they lie; or the arguments as they are.
    """
    if not scoring.by_photo:
        return maps, geometry
    size = _refined_size(geometry, scoring.refine_size)
    maps = enlarge(maps, replace(geometry, output=size))[None]
    photo = F.interpolate(guide[None].float() / 255, size=size, mode="bilinear")
    whole = [(range(size[0]), range(size[1]))]
    return refine_large(maps, photo, scoring), Geometry(
        whole, size, size, geometry.output, resizes=1
    )


def refine_large(maps: Tensor, photos: Tensor, scoring: Scoring) -> Tensor:
    """Refine maps by photos of their size.

    Args:
        maps: (B, K or P, H, W) of `score`.
        photos: (B, 3, H, W) RGB in [0, 1].
        scoring: by which the maps were made; its `by_photo` says what is done, in that order.

    Returns:
        (B, K or P, H, W).
    """
    for name in scoring.by_photo:
        if name == "pamr":
            maps = pamr(
                maps,
                photos,
                iterations=scoring.pamr_iterations or PAMR_ITERATIONS,
                dilations=scoring.pamr_dilations or PAMR_DILATIONS,
            )
        else:
            maps = propagate(maps, photos, class_agreement(scoring))
    return finish(maps, scoring)


def _refined_size(geometry: Geometry, short: int | None) -> tuple[int, int]:
    if short is None:
        return geometry.seen
    return fit_within(geometry.output, short=short, long=4 * short) if short else geometry.output


def class_agreement(scoring: Scoring) -> Tensor:
    """Return the weight (K,) of each map's class in agreement, which `tlp` reads off the rows."""
    return own_weights(_class_rows(scoring)) if scoring.own is None else scoring.own


def _class_rows(scoring: Scoring) -> Tensor:
    """Return one row of unit length a map, (K, D): the mean of its prompts'."""
    rows = F.normalize(scoring.rows.float(), dim=1)
    if scoring.prompts_compete:
        return rows
    classes = torch.tensor(scoring.classes, device=rows.device)
    total = rows.new_zeros(int(classes[-1]) + 1, rows.shape[1]).index_add_(0, classes, rows)
    return F.normalize(total, dim=1)


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
    counts = list(Counter(prompt_class).values())
    if len(counts) == len(prompt_class):
        return maps
    if torch.compiler.is_exporting():  # one operation, however many classes there are
        index = torch.tensor(prompt_class, device=maps.device)[:, None, None].expand_as(maps)
        pooled = maps[:, : len(counts)].clone()
        return pooled.scatter_reduce(1, index, maps, "amax", include_self=False)
    return torch.stack([part.amax(dim=1) for part in torch.split(maps, counts, dim=1)], dim=1)


def add_threshold_background(maps: Tensor, threshold: float) -> Tensor:
    """Prepend a background map of the constant `threshold`: it wins where all others are lower.

    Args:
        maps: (B, K, h, w) in the unit of `threshold` (clean: probabilities).
        threshold: the value under which a position is background.

    Returns:
        (B, K + 1, h, w).
    """
    return F.pad(maps, (0, 0, 0, 0, 1, 0), value=threshold)
