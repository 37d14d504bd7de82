"""How images change in training, in values: quick to import, so that mistakes are told at once."""

from __future__ import annotations

from dataclasses import dataclass

from maskclip.core.errors import MaskCLIPError


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How much images change; the defaults are the published ones of PASCAL VOC and COCO-Stuff.

    Attributes:
        scale: (long, short) side in px that an image is fitted into at a ratio of 1, keeping its
            shape; Pascal Context has (520, 520), Cityscapes (2048, 1024).
        ratio: (lowest, highest) factor on `scale`.
        crop: (h, w) of what comes out; Pascal Context has (480, 480), Cityscapes (512, 1024).
        max_share: crops of which one class fills this share or more are drawn again, up to 10
            times; 1 takes the first one.
        flip: how probable a horizontal flip is.
        distort: whether colours change.
    """

    scale: tuple[int, int] = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    crop: tuple[int, int] = (512, 512)
    max_share: float = 0.75
    flip: float = 0.5
    distort: bool = True

    def __post_init__(self) -> None:
        long, short = self.scale
        if not long >= short >= 1:
            raise MaskCLIPError(f"scale: expected (long, short) side in px, got {self.scale}")
        low, high = self.ratio
        if not 0 < low <= high < float("inf"):
            raise MaskCLIPError(
                f"ratio: expected (lowest, highest) factor above 0, got {self.ratio}"
            )
        if min(self.crop) < 1:
            raise MaskCLIPError(f"crop: expected (height, width) in px, got {self.crop}")
        if not 0 < self.max_share <= 1:
            raise MaskCLIPError(
                f"max_share: expected a share above 0, 1 to take any crop, got {self.max_share}"
            )
        if not 0 <= self.flip <= 1:
            raise MaskCLIPError(
                f"flip: expected a probability in [0, 1], 0 for no flips, got {self.flip}"
            )
