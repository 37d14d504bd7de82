"""Patches of one class attend to each other: what first maps give back to the last attention.

ResCLIP's semantic feedback refinement (Yang et al., CVPR 2025). Nothing of N x N is held that does
not fit into a band of rows. h x w grid, N = hw patches.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip.clip.attention import Bias
from maskclip.clip.likeness import bands
from maskclip.core.method import Feedback

PAIRS = 1 << 20
"""Pairs of patches that are looked at together."""


def alike(classes: Tensor, how: Feedback, like: Tensor, *, prefix: int = 1) -> Bias:
    """Return what is added to logits where patches are of one class, in [0, weight].

    Each patch's row says which patches have its class, less where the line to them leaves it;
    blurred along the patches in raster order, of a sum of 1, and divided by the largest of all
    rows. Tokens of no patch have nothing of it.

    Args:
        classes: (h, w) int64, those of the patches.
        how: of a method.
        like: gives dtype and device.
        prefix: how many tokens are of no patch, before the patches.
    """
    grid = _Grid(classes, how)
    count = classes.numel()
    kernel = _gaussian(how.blur, count, classes.device)

    def some(part: range) -> Tensor:
        found = grid.alike(part)[:, None]
        found = F.conv1d(found, kernel[None, None], padding=len(kernel) // 2)[:, 0]
        return found / (found.sum(dim=1, keepdim=True) + 1e-8)

    def rows(band: range) -> Tensor:
        return torch.cat([some(part) for part in _cut(band, max(PAIRS // count, 1))])

    whole = [range(band.start, band.stop) for band in bands(count, count)]
    if len(whole) == 1:
        kept = rows(whole[0])
        largest = kept.amax()
    else:
        largest = torch.stack([rows(band).amax() for band in whole]).amax()

    def bias(band: slice) -> Tensor:
        others = max(prefix - band.start, 0)  # rows of the band that are of no patch
        patches = range(band.start + others - prefix, max(band.stop, prefix) - prefix)
        found = kept[patches.start : patches.stop] if len(whole) == 1 else rows(patches)
        # The published code rounds to half precision, whatever it computes in.
        found = (found / largest).half().float().mul_(how.weight)
        return F.pad(found, (prefix, 0, others, 0)).to(like.dtype)

    return bias


def _cut(whole: range, size: int) -> Iterator[range]:
    """Cut a range into parts of at most `size`."""
    for start in range(whole.start, whole.stop, size):
        yield range(start, min(start + size, whole.stop))


def _gaussian(std: float, count: int, device: torch.device) -> Tensor:
    """Return a Gaussian of an odd number of positions, three deviations wide on each side."""
    size = min(count, int(6 * std + 1)) // 2 * 2 + 1
    at = torch.arange(size, device=device) - size // 2
    weights = torch.exp(-(at**2) / (2 * std**2))
    return weights / weights.sum()


class _Grid:
    """Classes on a grid, and the lines between its patches.

    A line is seen at as many points as the grid is long: point k of M lies k / M of the way along
    it, rounded to a patch.
    """

    def __init__(self, classes: Tensor, how: Feedback) -> None:
        self.height, self.width = classes.shape
        self.last = max(classes.shape) - 1
        self.classes = classes.flatten().int()
        self.how = how
        one = bool((self.classes == self.classes[0]).all())
        self.may_leave = how.connected and not one
        share = torch.linspace(0, 1, self.last + 1, device=classes.device)[:, None, None]
        self.down, self.across = (
            self.width * _points(self.height, share),
            _points(self.width, share),
        )

    def alike(self, band: range) -> Tensor:
        """Return how alike a band of patches are to all patches: (n, N) in [0, 1]."""
        start = torch.arange(band.start, band.stop, device=self.classes.device)
        y, x = start // self.width, start % self.width
        same = (self.classes[start][:, None] == self.classes).float()
        if not self.may_leave:
            return same
        height, width = (torch.arange(side, device=y.device) for side in (self.height, self.width))
        apart = (y[:, None] - height).abs()[:, :, None], (x[:, None] - width).abs()[:, None]
        steps = torch.maximum(*apart)
        far = torch.exp(-steps / self.last).flatten(1)
        return same.where(~self._left(start, steps), same * far)

    def _left(self, start: Tensor, steps: Tensor) -> Tensor:
        """Return whether the lines from some patches leave their class: (n, N) bool.

        `steps` (n, h, w) are the distances of the patches.
        """
        y, x = start // self.width, start % self.width
        own = self.classes[start][:, None, None]
        left = torch.zeros_like(steps, dtype=torch.bool)
        for k in range(1, self.last):
            at = self.down[k, y][:, :, None] + self.across[k, x][:, None]
            other = self.classes.index_select(0, at.flatten()).view_as(at) != own
            left |= other if self.how.whole_lines else other & (steps >= k)
        return left.flatten(1)


def _points(side: int, share: Tensor) -> Tensor:
    """Return the points of lines along an axis: (M + 1, side, side) int32, by share and start."""
    at = torch.arange(side, device=share.device)
    return (at[:, None] * (1 - share) + at * share).round().int()
