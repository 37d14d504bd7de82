"""How large a network sees photos: their sides under options, and which are too small."""

from __future__ import annotations

import math
from collections.abc import Callable

from maskclip.core.config import Options
from maskclip.core.errors import MaskCLIPError

LONG_SIDE_RATIO = 4
"""The longest that photos are seen, where no option says so: this many times their short side."""


def working_sides(options: Options, working_size: int) -> tuple[int, int]:
    """Return the short side, and the most of a long one, in px; both are 0 for photos as they are.

    Args:
        options: how images are cut.
        working_size: of the model, in px.
    """
    short = working_size if options.short_side is None else options.short_side
    return short, LONG_SIDE_RATIO * short if options.long_side is None else options.long_side


def check_view(
    options: Options,
    *,
    working_size: int,
    cell: int,
    check_size: Callable[[int, int], None] | None = None,
) -> None:
    """Refuse images and windows so small that nothing can be seen in any of them.

    Args:
        options: how images are cut.
        working_size: of the model, in px.
        cell: px between two positions of its grid.
        check_size: refuses a (height, width) in which the model's method cannot work.

    Raises:
        MaskCLIPError: a side fills less than half of one position of the grid, or the method
            cannot work in the largest image that the network will see.
    """
    for name in ("short_side", "window"):
        side = getattr(options, name)
        if side and 2 * side < cell:
            raise MaskCLIPError(
                f"`{name}`: {side} px are less than half of one position of the model's grid "
                f"({cell} px); its own working size is {working_size} px"
            )
    short, long = working_sides(options, working_size)
    most = options.window or math.inf
    height, width = (min(side or math.inf, most) for side in (short, long))
    if check_size is not None and height < math.inf:
        check_size(int(height), int(width))
