"""CLIP's image towers, read densely: one adapter a family, and a table of them.

Wraps open_clip's own modules and touches only their weights and sub-modules whose names are the
same in every release. Images arrive normalised. B images, C tower channels, D embedding channels,
h x w grid positions, N = 1 + hw tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip.clip.attention import (
    KERNELS,
    ORDINARY,
    class_token,
    mix,
    mixes_positions,
    read_again,
    read_blocks,
    run_block,
)
from maskclip.clip.families import SUPPORTED, Traits, traits_of
from maskclip.clip.feedback import alike
from maskclip.clip.positions import position_table
from maskclip.clip.purification import read_purified
from maskclip.core.dense import Read
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import Method
from maskclip.core.methods import for_any_tower, needed_blocks, needed_patches
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

    def __init__(self, visual: Any, method: Method) -> None: ...

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


def adapter_for(traits: Traits) -> type[Tower] | None:
    """Return what reads such towers, or None where nothing here does."""
    return _ADAPTERS.get((traits.family, traits.pooling)) if traits.plain else None


def build_tower(visual: nn.Module, method: Method) -> Tower:
    """Wrap an open_clip image tower; a method's activation and epsilon are set in place.

    Raises:
        UnsupportedTowerError: the tower is of another family.
        UnsupportedMethodError: it cannot compute the method.
    """
    adapter = adapter_for(traits_of(visual))
    if adapter is None:
        raise UnsupportedTowerError(
            f"{type(visual).__name__} has no dense reading here: expected {SUPPORTED}"
        )
    tower = adapter(visual, method)
    _check_kernels(method)
    tower.check(keys=False)
    _apply_method(visual, method)
    return tower


def can_read(visual: nn.Module, method: Method, *, keys: bool = False) -> bool:
    """Return whether a method can read an image tower, and whether there are keys under it."""
    adapter = adapter_for(traits_of(visual))
    if adapter is None:
        return False
    try:
        adapter(visual, method).check(keys=keys)
    except MaskCLIPError:
        return False
    return True


def _check_kernels(method: Method) -> None:
    middle = method.middle.kernels if method.middle else ()
    for name, _ in (*method.kernels, *middle):
        if name not in KERNELS:
            raise _unsupported(
                method, f"has an unknown kernel {name!r}: expected one of {', '.join(KERNELS)}"
            )
    alone = {"similar", "proxy"} & dict(middle).keys()
    if alone:
        raise _unsupported(method, f"has the kernel {min(alone)!r} in middle blocks: leave it out")
    apart = method.purification or method.feedback
    if apart is not None and "proxy" in dict(method.kernels):
        what = type(apart).__name__.lower()
        raise _unsupported(method, f"has a {what}, which a proxy cannot mix: leave one out")
    if (method.purification is None) == ("similar" in dict(method.kernels)):
        raise _unsupported(method, "needs both a purification and the kernel 'similar', or neither")
    if method.feedback is not None:
        comparing = {name for name, _ in method.kernels} <= {"qk", "qq", "kk", "vv"}
        if not comparing or method.blocks > 1 or method.unit_iterations is not None:
            raise _unsupported(
                method,
                "gives its maps back to the last block, whose kernels are then some of qk, qq, kk "
                "and vv, without unit vectors",
            )


def _unsupported(method: Method, why: str) -> UnsupportedMethodError:
    return UnsupportedMethodError(f"the method {method.name!r} {why}")


def _apply_method(visual: nn.Module, method: Method) -> None:
    """Set the activation of every MLP and the epsilon of every LayerNorm where the method says."""
    for module in visual.modules():
        if method.activation == "gelu" and hasattr(module, "gelu"):
            module.gelu = nn.GELU()
        if method.layer_norm_eps is not None and isinstance(module, nn.LayerNorm):
            module.eps = method.layer_norm_eps


class ResNetTower:
    """ModifiedResNet: stage 4 through the attention pool's value and output projections.

    Of a method, its kernels count: other than by the identity, positions are read by the whole
    pool. There is no block around it, so `residual` and `mlp` are not used.
    """

    class_token = False
    layout = torch.channels_last
    cell = 32

    def __init__(self, visual: Any, method: Method) -> None:
        self.visual = visual
        self.method = method

    def check(self, *, keys: bool) -> None:
        """See `Tower`."""
        method = self.method
        if not for_any_tower(method):
            raise _unsupported(
                method,
                "reads the blocks of a ViT, and this model is a ResNet: choose a ViT, as "
                "ViT-B-16, or a method for both: clean, published or baseline",
            )
        if keys and mixes_positions(method.kernels):
            raise UnsupportedMethodError(
                f"a ResNet read by the method {method.name!r} has no key smoothing: drop it, "
                "or use the clean or published method"
            )

    def check_size(self, height: int, width: int) -> None:
        """See `Tower`; any size will do."""

    def dense(
        self, images: Tensor, *, keys: bool, image: bool, proxy: Tensor | None = None
    ) -> Seen:
        """See `Tower`; positions have no embedding (published code, R3), but in `image`."""
        return self._read(self._stages(images)[-1], keys=keys, image=image)

    def staged(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """See `Tower`; the maps of all stages but the last."""
        *finer, last = self._stages(images, kept=True)
        return finer, self._read(last, keys=False, image=False).features

    def _read(self, x: Tensor, *, keys: bool, image: bool) -> Seen:
        pool = self.visual.attnpool
        own = self._pool(x) if image else None
        if mixes_positions(self.method.kernels):
            return Seen(_attend(pool, x, self.method), None, own)
        features = _pointwise(pool.c_proj, _pointwise(pool.v_proj, x))
        return Seen(features, _pointwise(pool.k_proj, x) if keys else None, own)

    def pooled(self, images: Tensor) -> Tensor:
        """See `Tower`; the position table is resized to the grid."""
        return self._pool(self._stages(images)[-1])

    def _stages(self, images: Tensor, *, kept: bool = False) -> list[Tensor]:
        """Return the last stage's map (B, C, h, w), after those of the others if they are kept."""
        height, width = images.shape[-2:]
        fit = _whole_cells if self.method.pad_to_cells else _one_cell
        x = pad_bottom_right(images, (fit(height, self.cell), fit(width, self.cell)))
        visual = self.visual
        x = visual.stem(x)
        maps: list[Tensor] = []
        for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = stage(x)
            maps = [*maps, x] if kept else [x]
        return maps

    def _pool(self, x: Tensor) -> Tensor:
        """Return what the attention pool makes of the mean of a map (B, C, h, w): (B, D)."""
        pool = self.visual.attnpool
        native = math.isqrt(len(pool.positional_embedding) - 1)
        grid = (x.shape[2], x.shape[3])
        table = position_table(pool.positional_embedding, (native, native), grid, self.method)
        tokens = _with_mean(x) + table.to(x.dtype)
        parts = {
            "query": pool.q_proj(tokens[:, :1]),
            "key": pool.k_proj(tokens),
            "value": pool.v_proj(tokens),
        }
        out: Tensor = pool.c_proj(mix(parts, ORDINARY, heads=pool.num_heads))
        return out[:, 0]


class ViTTower:
    """VisionTransformer: its last block read by a method, one feature a patch."""

    class_token = True
    layout = torch.contiguous_format

    def __init__(self, visual: Any, method: Method) -> None:
        self.visual = visual
        self.method = method
        patch = visual.conv1.kernel_size
        if patch[0] != patch[1]:
            raise UnsupportedTowerError(f"patches of {patch} are not square")
        self.cell = int(patch[0])

    def check(self, *, keys: bool) -> None:
        """See `Tower`."""
        method, blocks = self.method, self.visual.transformer.resblocks
        needed = needed_blocks(method)
        if len(blocks) < needed:
            raise _unsupported(method, f"needs {needed} blocks, and this ViT has {len(blocks)}")
        if keys and method.purification is not None:
            raise _unsupported(method, "has no keys: drop key smoothing")
        if isinstance(blocks[-1].attn, nn.MultiheadAttention) or not mixes_positions(
            method.kernels
        ):
            return
        whole = tuple(method.kernels) == ORDINARY and method.residual and method.mlp
        beside = method.middle or method.feedback or method.window is not None
        if keys or not whole or method.blocks > 1 or beside:
            raise _unsupported(
                method,
                "mixes positions, which a tower with normalised queries or keys does only in its "
                "own way, and without keys",
            )

    def check_size(self, height: int, width: int) -> None:
        """See `Tower`."""
        patches = math.prod(_whole_cells(side, self.cell) // self.cell for side in (height, width))
        needed = needed_patches(self.method)
        if patches < needed:
            raise _unsupported(
                self.method,
                f"needs more than {needed - 1} patches, and {width}x{height} px have {patches}: "
                "choose a larger short side, or another method",
            )

    def dense(
        self, images: Tensor, *, keys: bool, image: bool, proxy: Tensor | None = None
    ) -> Seen:
        """See `Tower`; the last block computes only what its kernels and these arguments need."""
        method = self.method
        self.check_size(images.shape[2], images.shape[3])
        x, grid = self._tokens(images)
        blocks = self.visual.transformer.resblocks
        if method.purification is not None:
            tokens, key, entering, parts = read_purified(blocks, x, method, grid=grid)
        else:
            tokens, key, entering, parts = read_blocks(
                blocks, x, method, grid=grid, keys=keys, proxy=proxy
            )
        if key is not None and method.project_keys:
            key = blocks[-1].attn.out_proj(key)
        return Seen(
            _to_map(self._project(tokens), grid),
            None if key is None else _to_map(key, grid),
            self._project(class_token(blocks[-1], entering)) if image else None,
            *((parts, self._read_again) if parts else ()),
        )

    def _read_again(self, parts: Mapping[str, Tensor], classes: Tensor) -> Tensor:
        """Return features (B, D, h, w) where the classes (B, h, w) of patches are known."""
        how, block = self.method.feedback, self.visual.transformer.resblocks[-1]
        assert how is not None
        grid, found = (classes.shape[1], classes.shape[2]), []
        for index, own in enumerate(classes):  # each image has rows of its own
            of_one = {name: part[index : index + 1] for name, part in parts.items()}
            near = alike(own, how, of_one["value"])
            found.append(read_again(block, of_one, self.method, grid=grid, alike=near))
        return _to_map(self._project(torch.cat(found)), grid)

    def staged(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """See `Tower`; a ViT has one grid."""
        return [], self.dense(images, keys=False, image=False).features

    def pooled(self, images: Tensor) -> Tensor:
        """See `Tower`."""
        x, _ = self._tokens(images)
        *blocks, last = self.visual.transformer.resblocks
        for block in blocks:
            x = run_block(block, x)
        return self._project(class_token(last, x))

    def _project(self, tokens: Tensor) -> Tensor:
        """Turn what leaves the last block (..., C) into features (..., D)."""
        return cast(Tensor, self.visual.ln_post(tokens) @ self.visual.proj)

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
        """Return the position table (N, C) for a grid."""
        native = tuple(self.visual.grid_size)
        return position_table(self.visual.positional_embedding, native, grid, self.method)


def _attend(pool: Any, x: Tensor, method: Method) -> Tensor:
    """Apply an attention pool to every position of a map (B, C, h, w), not only to the mean.

    Positions and their mean attend to each other without position embedding (published code, R4).
    """
    tokens = _with_mean(x)
    parts = {"query": pool.q_proj, "key": pool.k_proj, "value": pool.v_proj}
    parts = {name: projection(tokens) for name, projection in parts.items()}
    mixed = mix(parts, method.kernels, heads=pool.num_heads)
    return _to_map(pool.c_proj(mixed[:, 1:]), (x.shape[2], x.shape[3]))


def _with_mean(x: Tensor) -> Tensor:
    """Turn a map (B, C, h, w) into tokens (B, 1 + hw, C), their mean first."""
    positions = x.flatten(2).transpose(1, 2)
    return torch.cat([positions.mean(dim=1, keepdim=True), positions], dim=1)


def _whole_cells(length: int, cell: int) -> int:
    return (length + cell - 1) // cell * cell


def _one_cell(length: int, cell: int) -> int:
    return length if length >= cell else cell  # not `max`, which an export could not see through


def _pointwise(linear: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer at every position of a map (B, C, h, w)."""
    return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)


def _to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turn (B, hw, C) into (B, C, h, w)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


_ADAPTERS: dict[tuple[str, str], type[Tower]] = {
    ("resnet", "attention"): ResNetTower,
    ("vit", "tok"): ViTTower,
}
"""Family and pooling -> what reads such towers."""
