"""Image towers of timm whose embedding is a head on the mean of a last feature map.

ConvNeXt, FastViT and Swin in open_clip's `TimmModel`: its trunk ends in a map, whose mean a head
turns into the embedding. The same head at every position is the dense reading, as FC-CLIP does it
for ConvNeXt. Where the head is linear, as FastViT's, the mean of what it gives is the embedding.
B images, C channels of the map, D embedding channels, h x w grid positions.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from maskclip.clip.attention import mixes_positions
from maskclip.clip.towers.base import Seen, UnsupportedMethodError, padded, unsupported
from maskclip.core.method import Method
from maskclip.core.methods import for_any_tower


class FeatureMapTower:
    """A trunk of timm, read by its own head at every position.

    Only public functions of trunks are called: `forward_features`, `forward_intermediates` and
    `forward_head`. Of a method, the preprocessing and what follows the features count: there is no
    last self-attention that could be read in another way (`baseline` is `clean`), and no keys.
    """

    class_token = False
    layout = torch.channels_last

    def __init__(self, visual: Any, method: Method) -> None:
        self.visual = visual
        self.method = method
        self.cell = int(visual.trunk.feature_info[-1]["reduction"])
        self._channels_last = getattr(visual.trunk, "output_fmt", "NCHW") == "NHWC"
        _allow_any_size(visual.trunk)

    def check(self, *, keys: bool) -> None:
        """See `Tower`."""
        method = self.method
        if not for_any_tower(method):
            raise unsupported(
                method,
                "reads a last self-attention, and this model ends in a feature map: choose a ViT, "
                "as ViT-B-16, or a method for any network: clean, published or baseline",
            )
        if mixes_positions(method.pool):
            raise unsupported(method, "mixes within an attention pool, which this network has not")
        if keys:
            raise UnsupportedMethodError(
                "this model ends in a feature map, without keys: drop key smoothing, or choose a "
                "ViT or one of OpenAI's ResNets"
            )

    def check_size(self, height: int, width: int) -> None:
        """See `Tower`; any size will do."""

    def dense(
        self, images: Tensor, *, keys: bool, image: bool, proxy: Tensor | None = None
    ) -> Seen:
        """See `Tower`; the image's own embedding is the head's of the mean."""
        x = self._map(images)
        return Seen(self._everywhere(x), None, self._head(x) if image else None)

    def staged(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """See `Tower`; the maps of all stages but the last."""
        x, stages = self.visual.trunk.forward_intermediates(self._padded(images))
        return stages[:-1], self._everywhere(x)

    def pooled(self, images: Tensor) -> Tensor:
        """See `Tower`."""
        return self._head(self._map(images))

    def _map(self, images: Tensor) -> Tensor:
        """Return the last feature map: (B, C, h, w), or (B, h, w, C) where that is its order."""
        return cast(Tensor, self.visual.trunk.forward_features(self._padded(images)))

    def _padded(self, images: Tensor) -> Tensor:
        """Return the images as the trunk takes them; in the ordinary layout where it is trained.

        Gradients of FastViT in `layout` are written beyond their memory (torch 2.15, CPU).
        """
        images = padded(images, self.cell, self.method)
        return images.contiguous() if torch.is_grad_enabled() else images

    def _head(self, x: Tensor) -> Tensor:
        """Return what the model makes of a map's mean: (B, D)."""
        return cast(Tensor, self.visual.head(self.visual.trunk.forward_head(x)))

    def _everywhere(self, x: Tensor) -> Tensor:
        """Return what the model makes of each position, as if it were a map: (B, D, h, w)."""
        if not self._channels_last:
            x = x.permute(0, 2, 3, 1)
        batch, height, width, channels = x.shape
        one = (1, 1, channels) if self._channels_last else (channels, 1, 1)
        features = self._head(x.reshape(batch * height * width, *one))
        return features.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def _allow_any_size(trunk: Any) -> None:
    """Let a trunk of windows take images of any size, as timm does if it is built for that.

    Swin's windows stay as large as in its training, and are masked and padded by the image's size.
    """
    for module in trunk.modules():
        if hasattr(module, "strict_img_size"):
            module.strict_img_size, module.dynamic_img_pad = False, True
        if hasattr(module, "dynamic_mask"):
            module.dynamic_mask = True
