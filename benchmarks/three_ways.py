"""Three ways from photos to labels, to be measured side by side; with random weights.

    bare   the limit: open_clip's own `encode_image`, from a ready, normalised tensor. Its position
           table is resized beforehand, and its attention runs through SDPA: torch's inference path
           for MultiheadAttention, which is slower here, is switched off.
    usual  the field's pipeline, from a decoded photo to labels: attention that returns its weights,
           the last block's queries, keys and values through the output projection, an MLP on the
           value path and the ordinary output beside it; K maps enlarged, softmax, argmax.
    ours   `Segmenter.segment`, from a decoded photo of the network's size to labels. Text rows are
           kept, as after the first image. By the method `published` the photo has 15/16 of that
           size, so that it is resized first, and maps twice.

All see photos padded to whole cells, in the precision of the cell; `auto` is what each takes when
nothing is said: float32 for the others, what `--precision auto` chooses for ours.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.weights import load_clip
from maskclip.core.config import Options
from maskclip.core.dense import score
from maskclip.core.device import PRECISIONS
from maskclip.core.method import CLEAN, PUBLISHED
from maskclip.core.resize import pad_bottom_right
from maskclip.core.vocabulary import Vocabulary
from maskclip.tasks.segmenter import CLIPSegmenter

WAYS = ("bare", "usual", "ours")
REFINEMENTS: dict[str, Any] = {"off": {}, "KS+PD": {"key_smoothing": 1, "prompt_denoising": 0.5}}
METHODS = {method.name: replace(method, temperature=100.0) for method in (CLEAN, PUBLISHED)}
"""Random weights have the temperature that training starts with; trained ones have this."""
BLOBS = 4  # patches of colour along a picture's short side
DIRECTIONS = 8  # in which random features are spread


def dtype_of(precision: str) -> torch.dtype:
    """Return what the bare and the usual way compute in."""
    return PRECISIONS.get(precision, torch.float32)


@dataclass(frozen=True)
class Cell:
    """What is measured: one line of a table."""

    model: str
    size: tuple[int, int]
    classes: int
    batch: int
    precision: str
    refinement: str
    device: str
    method: str = CLEAN.name

    def __str__(self) -> str:
        size, count = f"{self.size[0]}x{self.size[1]}", f"K{self.classes} B{self.batch}"
        how = "" if self.method == CLEAN.name else f" {self.method}"
        return f"{self.model} {size} {count} {self.precision} {self.refinement} {self.device}{how}"


def smooth_photo(size: tuple[int, int], seed: int) -> Image.Image:
    """Draw soft patches of colour: a random picture whose dense features are smooth."""
    seeded, factor = torch.Generator().manual_seed(seed), BLOBS / min(size)
    coarse = torch.randn(1, 3, *(round(side * factor) for side in size), generator=seeded)
    pixels = 128 + 70 * F.interpolate(coarse, size, mode="bicubic")[0]
    return Image.fromarray(pixels.clamp(0, 255).byte().permute(1, 2, 0).numpy())


def pixels_of(photos: Sequence[Image.Image]) -> Tensor:
    """Return photos of one size as (B, 3, H, W) uint8."""
    return torch.stack([torch.from_numpy(np.array(photo)).permute(2, 0, 1) for photo in photos])


@torch.no_grad()
def spread(encoder: DenseCLIP) -> None:
    """Let random weights tell regions apart as trained ones do, by their last linear maps alone.

    A random tower gives all positions nearly one feature, and one class would win everywhere:
    features (and a ResNet's keys) are centred, their strongest directions made equally strong.
    """
    visual: Any = encoder.visual
    dense = encoder.encode(pixels_of([smooth_photo((192, 288), seed=9)]), keys=True)
    if hasattr(visual, "attnpool"):
        pool = visual.attnpool
        for linear, maps in ((pool.c_proj, dense.features), (pool.k_proj, dense.keys)):
            mean, change = whitening(maps)
            linear.bias.copy_((linear.bias - mean) @ change)
            linear.weight.copy_(change.T @ linear.weight)
    else:
        mean, change = whitening(dense.features)
        visual.ln_post.bias.sub_(torch.linalg.lstsq(visual.proj.T, mean[:, None]).solution[:, 0])
        visual.proj.copy_(visual.proj @ change)


def whitening(maps: Any) -> tuple[Tensor, Tensor]:
    """Return the mean (D) of a map, and what (D, D) makes its strongest directions alike."""
    positions = maps[0].flatten(1).T
    mean = positions.mean(dim=0)
    _, strength, directions = torch.linalg.svd(positions - mean, full_matrices=False)
    scale = len(positions) ** 0.5 / strength[:DIRECTIONS]
    return mean, (directions[:DIRECTIONS].T * scale) @ directions[:DIRECTIONS]


class Contest:
    """The three ways on one cell's photos and classes."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.device = cell, torch.device(cell.device)
        dtype = dtype_of(cell.precision)
        self.clip = load_clip(cell.model, weights="random")
        method = METHODS[cell.method]
        spread(DenseCLIP.of(self.clip, method=method))  # whose weights are the model's own
        self.visual: Any = copy.deepcopy(self.clip.visual).to(self.device, dtype)
        self.segmenter = CLIPSegmenter(
            self.clip,
            method=method,
            device=self.device,
            precision=cell.precision,
            templates="plain",
        )
        self.photos = [smooth_photo(cell.size, seed) for seed in range(cell.batch)]
        self.options = dict(REFINEMENTS[cell.refinement])
        self.own, self.view = self.photos, {"short_side": 0}
        if cell.method == PUBLISHED.name:
            height, width = (round(side * 15 / 16) for side in cell.size)
            self.own = [photo.resize((width, height)) for photo in self.photos]
            self.view = {"short_side": min(cell.size), "long_side": max(cell.size)}
        self.vocabulary = Vocabulary.parse([f"class {index}" for index in range(cell.classes)])
        seeded = torch.Generator().manual_seed(1)
        rows = torch.randn(cell.classes, self.visual.output_dim, generator=seeded)
        self.rows = F.normalize(rows, dim=1).to(self.device)
        self.segmenter._rows.put(self.vocabulary, self.rows, 0)
        self.ready = self.normalized()
        fit_positions(self.visual, [s // self.segmenter.encoder.cell for s in self.ready.shape[2:]])

    def normalized(self) -> Tensor:
        """Return the photos as the encoder takes them, padded to whole cells."""
        side, pixels = self.segmenter.encoder.cell, pixels_of(self.photos).to(self.device)
        mean, std = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in (self.clip.mean, self.clip.std)
        )
        height, width = (-(-length // side) * side for length in self.cell.size)
        padded = pad_bottom_right((pixels.float() / 255 - mean) / std, (height, width))
        return padded.to(dtype_of(self.cell.precision))

    @torch.inference_mode()
    def bare(self) -> Any:
        torch.backends.mha.set_fastpath_enabled(False)
        return self.visual(self.ready)

    @torch.inference_mode()
    def usual(self) -> Any:
        torch.backends.mha.set_fastpath_enabled(True)
        read = usual_resnet if hasattr(self.visual, "attnpool") else usual_vit
        features, keys = read(self.visual, self.normalized())
        maps = F.conv2d(F.normalize(features.float(), dim=1), self.rows[:, :, None, None])
        if self.options:
            maps = usual_refinement(maps, keys.float())
        maps = F.interpolate(maps, self.cell.size, mode="bilinear")
        return maps.softmax(dim=1).argmax(dim=1).cpu().numpy()

    def ours(self) -> Any:
        torch.backends.mha.set_fastpath_enabled(True)
        return self.segmenter.segment(self.own, self.vocabulary, **self.view, **self.options)

    @torch.inference_mode()
    def candidates(self) -> tuple[float, float]:
        """Return how many classes can win in a grid cell: the mean, and a row's most (its mean)."""
        pixels = pixels_of(self.photos[:1]).to(self.device)
        dense = self.segmenter.encoder.encode(pixels, keys=bool(self.options))
        maps = score(dense, self.segmenter.scoring(self.vocabulary, Options(**self.options)))
        best, worst = F.max_pool2d(maps, 2, stride=1)[0], -F.max_pool2d(-maps, 2, stride=1)[0]
        count = (best >= worst.amax(dim=0)).sum(dim=0).float()
        return float(count.mean()), float(count.amax(dim=1).mean())


def fit_positions(visual: Any, grid: Sequence[int]) -> None:
    """Resize a tower's position table for a grid (h, w), in place."""
    holder = getattr(visual, "attnpool", visual)
    table = holder.positional_embedding.detach()
    native = round((len(table) - 1) ** 0.5)
    maps = table[1:].float().T.reshape(1, -1, native, native)
    maps = F.interpolate(maps, list(grid), mode="bicubic")[0].flatten(1).T
    holder.positional_embedding = nn.Parameter(torch.cat([table[:1], maps.to(table.dtype)]))


def usual_vit(visual: Any, images: Tensor) -> list[Tensor]:
    """Read a ViT as the published code does: features (B, D, h, w) and keys (B, C, h, w)."""
    x = visual._embeds(images)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = usual_block(block, x)
    inner = F.linear(last.ln_1(x), last.attn.in_proj_weight, last.attn.in_proj_bias)
    _, key, value = (last.attn.out_proj(part) for part in inner.chunk(3, dim=-1))
    value = value + x
    value = value + last.mlp(last.ln_2(value))
    visual.ln_post(usual_block(last, x))  # computed there, and not read
    features = visual.ln_post(value) @ visual.proj
    grid = [side // visual.patch_size[0] for side in images.shape[2:]]
    return [tokens[:, 1:].transpose(1, 2).unflatten(2, grid) for tokens in (features, key)]


def usual_block(block: Any, x: Tensor) -> Any:
    """Run a residual block whose attention returns its weights, which nobody reads."""
    normed = block.ln_1(x)
    x = x + block.attn(normed, normed, normed, need_weights=True)[0]
    return x + block.mlp(block.ln_2(x))


def usual_resnet(visual: Any, images: Tensor) -> list[Tensor]:
    """Read a ResNet as the published code does."""
    x = visual.stem(images)
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = stage(x)

    def pointwise(linear: nn.Linear, x: Tensor) -> Tensor:
        return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)

    pool = visual.attnpool
    pointwise(pool.q_proj, x)  # computed there, and not read
    return [pointwise(pool.c_proj, pointwise(pool.v_proj, x)), pointwise(pool.k_proj, x)]


def usual_refinement(maps: Tensor, keys: Tensor) -> Tensor:
    """Denoise prompts, then smooth keys by the hw x hw affinity, as the published code does."""
    best = (100 * maps).softmax(dim=1).amax(dim=(2, 3))
    flat = (100 * maps.masked_fill(best[:, :, None, None] < 0.5, -100)).softmax(dim=1)
    flat = flat.flatten(2).transpose(1, 2)
    unit = F.normalize(keys.flatten(2).transpose(1, 2), dim=1)
    affinity = unit @ unit.transpose(1, 2)
    smooth = torch.where(flat.amax(dim=2, keepdim=True) < 1, affinity @ flat, flat)
    return smooth.transpose(1, 2).reshape(maps.shape).contiguous()  # else softmax takes 8 x as long
