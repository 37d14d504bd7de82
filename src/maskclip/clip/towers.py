"""CLIP's two image towers, read densely.

Wraps open_clip's own modules and touches only their weights and sub-modules whose names are the
same in every release. Images arrive normalised. B images, C tower channels, D embedding channels,
h x w grid positions, N = 1 + hw tokens.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import Method
from maskclip.core.windows import pad_bottom_right

SUPPORTED = (
    "ModifiedResNet (RN50, RN101, RN50x4, RN50x16, RN50x64) and VisionTransformer with class-token "
    "pooling (ViT-B/32, B/16, L/14, L/14@336, H/14, g/14, bigG/14 and their variants)"
)


class UnsupportedTowerError(MaskCLIPError):
    """The image tower is of a family that has no dense reading here."""


class Tower(Protocol):
    """What `DenseCLIP` needs of an image tower."""

    cell: int
    """Pixels between two grid positions."""
    layout: torch.memory_format
    """How images and weights lie in memory where the tower runs fastest."""

    def dense(self, images: Tensor, *, keys: bool) -> tuple[Tensor, Tensor | None]:
        """Return raw features (B, D, h, w) and, when asked for, raw keys (B, C, h, w)."""
        ...

    def pooled(self, images: Tensor) -> Tensor:
        """Return the ordinary image embedding (B, D), as CLIP's own forward does."""
        ...


def build_tower(visual: nn.Module, method: Method) -> Tower:
    """Wrap an open_clip image tower; a method's activation and epsilon are set in place.

    Raises:
        UnsupportedTowerError: the tower is of another family.
    """
    family: type[ResNetTower] | type[ViTTower] | None = None
    if getattr(visual, "attnpool", None) is not None and hasattr(visual, "layer4"):
        family = ResNetTower
    elif _is_class_token_vit(visual):
        family = ViTTower
    if family is not None:
        tower = family(visual, method)
        _apply_method(visual, method)
        return tower
    raise UnsupportedTowerError(
        f"{type(visual).__name__} has no dense reading here: expected {SUPPORTED}"
    )


def _is_class_token_vit(visual: Any) -> bool:
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if blocks is None or not hasattr(visual, "class_embedding"):
        return False
    last = blocks[-1]
    extras = (
        getattr(last.attn, "head_scale", None),
        getattr(last.attn, "ln_inner", None),
        getattr(last, "ln_attn", None),
    )
    plain = hasattr(last.attn, "in_proj_weight") and all(
        extra is None or isinstance(extra, nn.Identity) for extra in extras
    )
    pooled = visual.attn_pool is None and visual.pool_type == "tok"
    return bool(plain and pooled and visual.proj is not None)


def _apply_method(visual: nn.Module, method: Method) -> None:
    """Set the activation of every MLP and the epsilon of every LayerNorm where the method says."""
    for module in visual.modules():
        if method.activation == "gelu" and hasattr(module, "gelu"):
            module.gelu = nn.GELU()
        if method.layer_norm_eps is not None and isinstance(module, nn.LayerNorm):
            module.eps = method.layer_norm_eps


class ResNetTower:
    """ModifiedResNet: stage 4 through the attention pool's value and output projections."""

    cell = 32
    layout = torch.channels_last

    def __init__(self, visual: Any, method: Method) -> None:
        self.visual = visual
        self.method = method

    def dense(self, images: Tensor, *, keys: bool) -> tuple[Tensor, Tensor | None]:
        """See `Tower`; no attention, no position embedding (reference fact R3)."""
        height, width = images.shape[-2:]
        if self.method.pad_to_cells:
            size = (_whole_cells(height, self.cell), _whole_cells(width, self.cell))
        else:
            size = (max(height, self.cell), max(width, self.cell))
        x = self._stages(pad_bottom_right(images, size))
        pool = self.visual.attnpool
        if self.method.attention == "mixed":
            if keys:
                raise MaskCLIPError(
                    "a ResNet read by the baseline method has no key smoothing: drop it, or use "
                    "the clean or published method"
                )
            return _attend(pool, x), None
        features = _pointwise(pool.c_proj, _pointwise(pool.v_proj, x))
        return features, _pointwise(pool.k_proj, x) if keys else None

    def pooled(self, images: Tensor) -> Tensor:
        """See `Tower`; needs the tower's native input size."""
        return cast(Tensor, self.visual.attnpool(self._stages(images)))

    def _stages(self, x: Tensor) -> Tensor:
        visual = self.visual
        stages = (visual.stem, visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        for stage in stages:
            x = stage(x)
        return x


class ViTTower:
    """VisionTransformer: the value path of its last block, one feature a patch."""

    layout = torch.contiguous_format

    def __init__(self, visual: Any, method: Method) -> None:
        self.visual = visual
        self.method = method
        patch = visual.conv1.kernel_size
        if patch[0] != patch[1]:
            raise UnsupportedTowerError(f"patches of {patch} are not square")
        self.cell = int(patch[0])

    def dense(self, images: Tensor, *, keys: bool) -> tuple[Tensor, Tensor | None]:
        """See `Tower`; the last block computes its values, and its keys only when asked."""
        x, grid = self._tokens(images)
        blocks = self.visual.transformer.resblocks
        for block in blocks[:-1]:
            x = _run(block, x)
        last = blocks[-1]
        patches = x[:, 1:]
        normed = last.ln_1(patches)
        if self.method.attention == "mixed":
            value = _run(last, x)[:, 1:]
        else:
            value = last.attn.out_proj(_in_projection(last.attn, normed, part=2))
            value = last.ls_1(value)
            if self.method.value_residual:
                value = value + patches
                value = value + last.ls_2(last.mlp(last.ln_2(value)))
        features = self.visual.ln_post(value) @ self.visual.proj
        key = None
        if keys:
            key = _in_projection(last.attn, normed, part=1)
            if self.method.project_keys:
                key = last.attn.out_proj(key)
        return _to_map(features, grid), None if key is None else _to_map(key, grid)

    def pooled(self, images: Tensor) -> Tensor:
        """See `Tower`."""
        x, _ = self._tokens(images)
        for block in self.visual.transformer.resblocks:
            x = _run(block, x)
        return cast(Tensor, self.visual.ln_post(x[:, 0]) @ self.visual.proj)

    def _tokens(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens (B, N, C) that enter the first block, and the grid (h, w)."""
        visual = self.visual
        height, width = images.shape[-2:]
        size = (_whole_cells(height, self.cell), _whole_cells(width, self.cell))
        patches = visual.conv1(pad_bottom_right(images, size))
        grid = (patches.shape[2], patches.shape[3])
        patches = patches.flatten(2).transpose(1, 2)
        token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        x = torch.cat([token, patches], dim=1)
        return visual.ln_pre(x + self._positions(grid).to(x.dtype)), grid

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the position table (N, C) for a grid, resized bicubically where needed (V6)."""
        table: Tensor = self.visual.positional_embedding
        native = tuple(self.visual.grid_size)
        if self.method.position_resize == "count":
            fits = grid[0] * grid[1] == table.shape[0] - 1
        else:
            fits = grid == native
        if fits:
            return table
        maps = table[1:].float().view(1, *native, -1).permute(0, 3, 1, 2)
        maps = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False)
        return torch.cat([table[:1].float(), maps.flatten(2)[0].T])


def _attend(pool: Any, x: Tensor) -> Tensor:
    """Apply an attention pool to every position of a map (B, C, h, w), not only to the mean.

    Positions and their mean attend to each other without position embedding (reference fact R4).
    """
    positions = x.flatten(2).transpose(1, 2)
    tokens = torch.cat([positions.mean(dim=1, keepdim=True), positions], dim=1)  # B x 1 + hw x C
    query, key, value = (
        part(tokens).unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
        for part in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return _to_map(pool.c_proj(mixed[:, 1:]), (x.shape[2], x.shape[3]))


def _run(block: Any, x: Tensor) -> Tensor:
    """Run a residual block on tokens (B, N, C), never holding an N x N attention map.

    In inference torch's MultiheadAttention takes a path of its own that holds one for every head:
    64 GiB for the 65,537 tokens of 4096 x 4096 px.
    """
    attention = block.attn
    if not isinstance(attention, nn.MultiheadAttention):
        return cast(Tensor, block(x))  # open_clip's own attention holds none
    normed = block.ln_1(x)
    projected = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = (
        part.reshape(*part.shape[:2], attention.num_heads, -1).transpose(1, 2)
        for part in projected.chunk(3, dim=2)
    )  # B x heads x N x C / heads
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    x = x + block.ls_1(attention.out_proj(mixed))
    return cast(Tensor, x + block.ls_2(block.mlp(block.ln_2(x))))


def _whole_cells(length: int, cell: int) -> int:
    return -(-length // cell) * cell


def _pointwise(linear: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer at every position of a map (B, C, h, w)."""
    return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)


def _in_projection(attention: Any, x: Tensor, *, part: int) -> Tensor:
    """Apply the query (0), key (1) or value (2) third of an attention's input projection."""
    weight = attention.in_proj_weight.chunk(3)[part]
    bias = attention.in_proj_bias
    return F.linear(x, weight, None if bias is None else bias.chunk(3)[part])


def _to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turn (B, hw, C) into (B, C, h, w)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)
