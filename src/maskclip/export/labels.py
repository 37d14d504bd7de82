"""A network and its words as one function of pixels: labels, scores, and the maps of the grid.

B images, K classes (a background by threshold among them), P maps (without it), h x w grid
positions, H x W pixels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip.core.dense import Dense, Scoring, finish, score
from maskclip.core.method import Method
from maskclip.export.graph import ExportError

OUTPUTS = ("labels", "scores", "maps")
"""The names of what a `LabelGraph` returns, in their order."""

CHUNK = 16
"""Classes that are enlarged to the pixels at once: all of a thousand would take gigabytes."""


class Encode(Protocol):
    """What sees images, as tensors alone."""

    def __call__(self, images: Tensor, /, *, keys: bool, image: bool) -> Dense:
        """Encode images (B, 3, H, W)."""


class LabelGraph(nn.Module):
    """Labels of images by words that are frozen in.

    Args:
        network: what holds the weights, in float32 and eval mode.
        encode: sees images by it.
        scoring: the words, and what is made of similarities with them. What the photo refines is
            left to who runs the graph.

    Raises:
        ExportError: what the scoring says cannot be done in a graph.
    """

    rows: Tensor

    def __init__(self, network: nn.Module, encode: Encode, scoring: Scoring) -> None:
        super().__init__()
        check_method(scoring.method)
        self.network, self.encode, self.scoring = network.eval(), encode, scoring
        self.register_buffer("rows", scoring.rows.detach().float().clone())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Label images (B, 3, H, W), uint8 or in [0, 1].

        Returns:
            labels (B, H, W) int32; scores (B, H, W) float32, the winner's value; maps (B, P, h, w)
            float32: what the labels are made of, similarities in most methods.
        """
        scoring = replace(self.scoring, rows=self.rows)
        dense = self.encode(images, keys=scoring.needs_keys, image=scoring.needs_image)
        plain = replace(scoring, refine=(*scoring.refine, "pamr"))  # leaves them unfinished
        maps = score(dense, plain)
        size = (images.shape[2], images.shape[3])
        return *best_classes(finish(maps, scoring), dense.covered, size), maps


def check_method(method: Method) -> None:
    """Refuse what a graph of fixed shapes and single passes has no way to do.

    Raises:
        ExportError: in one line, what and what to do.
    """
    name = method.name
    if method.feedback is not None:
        raise ExportError(
            f"the method {name!r} reads a photo again by its own first labels, which no graph "
            "does: export resclip-rcs, its first pass, or another method"
        )
    if "aligned" in dict(method.kernels) and method.alignment.solver == "svd":
        raise ExportError(
            f"the method {name!r} needs a singular value decomposition, which ONNX has not: take "
            "the solver newton-schulz"
        )
    if method.upsample == "prompts":
        raise ExportError(
            f"the method {name!r} lets all prompts compete at every pixel, which a graph does "
            'not: take upsample = "probabilities" or "maps"'
        )


def best_classes(
    maps: Tensor, covered: tuple[int, int], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Enlarge maps to pixels and take the best class, some classes at a time.

    Args:
        maps: (B, K, h, w).
        covered: the (height, width) in px that the grid spans, not smaller than `size`.
        size: (H, W) of the pixels.

    Returns:
        labels (B, H, W) int32, ties to the lower class; scores (B, H, W), the winner's value.
    """
    best: Tensor | None = None
    winner: Tensor | None = None
    inside = [torch.arange(side, device=maps.device) for side in size]  # slices would be guarded
    for start in range(0, maps.shape[1], CHUNK):
        part = F.interpolate(
            maps[:, start : start + CHUNK], size=covered, mode="bilinear", align_corners=False
        )
        for dim, kept in enumerate(inside, start=2):
            part = part.index_select(dim, kept)
        value, index = part.max(dim=1)
        index = index.to(torch.int32) + start
        if best is None or winner is None:
            best, winner = value, index
        else:
            winner = torch.where(value > best, index, winner)
            best = torch.maximum(value, best)
    assert best is not None
    assert winner is not None
    return winner, best
