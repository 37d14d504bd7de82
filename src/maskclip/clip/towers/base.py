"""What every image tower answers, and how it refuses.

B images, C tower channels, D embedding channels, h x w grid positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from maskclip.core.dense import Read
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import Method
from maskclip.core.resize import pad_bottom_right


class UnsupportedTowerError(MaskCLIPError):
    """The image tower is of a family that has no dense reading here."""


class UnsupportedMethodError(MaskCLIPError):
    """An image tower cannot compute what a method asks for."""


class Seen(NamedTuple):
    """What a tower sees in images.

    Attributes:
        features: (B, D, h, w), raw.
        keys: (B, C, h, w), raw; None unless wanted.
        image: (B, D), the images' own embeddings, raw; None unless wanted.
        parts: what `read` needs to read the last block again, (B, ...) each; None where it is read
            once.
        read: parts and the classes of patches (B, h, w) -> features (B, D, h, w).
    """

    features: Tensor
    keys: Tensor | None
    image: Tensor | None
    parts: Mapping[str, Tensor] | None = None
    read: Read | None = None


class Tower(Protocol):
    """What `DenseCLIP` needs of an image tower, whatever its family."""

    class_token: bool
    """Whether a token of the whole image goes along with the patches."""
    layout: torch.memory_format
    """How images and weights lie in memory where the tower runs fastest."""
    cell: int
    """Pixels between two grid positions."""

    def check(self, *, keys: bool) -> None:
        """Refuse a method that the tower cannot compute, or the keys that it then has not.

        Raises:
            UnsupportedMethodError: in one line, what and why.
        """

    def check_size(self, height: int, width: int) -> None:
        """Refuse an image, of so many px, in which the method cannot work.

        Raises:
            UnsupportedMethodError: in one line, what and why.
        """

    def dense(
        self, images: Tensor, *, keys: bool, image: bool, proxy: Tensor | None = None
    ) -> Seen:
        """Read images densely; also their keys and own embeddings, if wanted.

        `proxy` has the unit vectors (B, h w, D) of another network, for the kernel `proxy`.
        """
        ...

    def staged(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the maps (B, c, h, w) of finer grids, the finest first, and the features."""
        ...

    def pooled(self, images: Tensor) -> Tensor:
        """Return the images' own embeddings (B, D), as CLIP's own forward does."""
        ...


def unsupported(method: Method, why: str) -> UnsupportedMethodError:
    """Return the error that a method cannot be computed, and why."""
    return UnsupportedMethodError(f"the method {method.name!r} {why}")


def whole_cells(length: int, cell: int) -> int:
    """Return the pixels of the fewest cells that hold a length."""
    return (length + cell - 1) // cell * cell


def padded(images: Tensor, cell: int, method: Method) -> Tensor:
    """Return the images (B, 3, H, W) as a method pads those of a convolutional network.

    To whole cells; or to a single one, where it lets the network drop the last rows and columns.
    """
    fit = whole_cells if method.pad_to_cells else _one_cell
    return pad_bottom_right(images, (fit(images.shape[2], cell), fit(images.shape[3], cell)))


def _one_cell(length: int, cell: int) -> int:
    return length if length >= cell else cell  # not `max`, which an export could not see through


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turn (B, hw, C) into (B, C, h, w)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


Adapter = Callable[[Any, Method], Tower]
"""open_clip's image tower and a method -> what reads it."""
