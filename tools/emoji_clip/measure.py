"""Measure a packed model on scenes: `python -m tools.emoji_clip.measure emoji-rn`.

This is for watching training and choosing a working size. It takes other scenes than the
evaluation's, and runs apart from training, which never sees a label.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.model import CLIPModel
from maskclip.clip.prompts import encode_names
from maskclip.clip.weights import load_clip
from maskclip.core.dense import similarity
from maskclip.core.method import CLEAN
from maskclip.core.refinement import probabilities
from maskclip.emoji.captions import PLAIN, class_names
from maskclip.emoji.scenes import Scene, draw_scene
from maskclip.emoji.sprites import object_names
from tools.emoji_clip.examples import draw_example

FIRST_SCENE = 1_000_000  # far from the evaluation's seeds
FIRST_EXAMPLE = 2**60  # far from the seeds of any run
log = logging.getLogger(__name__)


@torch.inference_mode()
def dense_ious(
    clip: CLIPModel, scenes: Sequence[Scene], *, side: int, template: str = PLAIN
) -> Tensor:
    """Return the IoU of each class, (K,) float, NaN for a class that no scene shows.

    The scenes are resized to `side`, a whole number of the model's cells.
    """
    encoder = DenseCLIP(clip.visual, method=CLEAN, mean=clip.mean, std=clip.std)
    if side % encoder.cell:
        raise ValueError(f"expected a multiple of the cell, {encoder.cell} px, got {side}")
    rows = encode_names(clip, class_names(), [template])
    count = len(class_names())
    confusion = torch.zeros(count * count, dtype=torch.int64)
    for scene in scenes:
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float() / 255
        image = F.interpolate(image, size=(side, side), mode="bilinear", antialias=True)
        maps = probabilities(similarity(encoder.encode(image).features, rows), 100)
        size = scene.labels.shape
        found = F.interpolate(maps, size=size, mode="bilinear").argmax(dim=1)[0]
        truth = torch.from_numpy(scene.labels).long()
        confusion += torch.bincount((truth * count + found).flatten(), minlength=count * count)
    table = confusion.view(count, count)
    shared = table.diagonal().float()
    return torch.where(
        table.sum(dim=1) > 0, shared / (table.sum(dim=0) + table.sum(dim=1) - shared), torch.nan
    )


@torch.inference_mode()
def retrieval(clip: CLIPModel, images: Sequence[Tensor], captions: Sequence[str]) -> float:
    """Return how often the nearest caption of an image (3, 128, 128) uint8 is its own, in 0..1."""
    model: Any = clip.model
    encoder = DenseCLIP(model.visual, method=CLEAN, mean=clip.mean, std=clip.std)
    pooled = F.normalize(encoder.pool(torch.stack(list(images))), dim=1)
    rows = model.encode_text(clip.tokenizer(list(captions)), normalize=True)
    nearest: list[int] = (pooled @ rows.T).argmax(dim=1).tolist()
    hits = sum(captions[found] == caption for found, caption in zip(nearest, captions, strict=True))
    return hits / len(captions)


def _report(clip: CLIPModel, sides: Sequence[int], scenes: Sequence[Scene]) -> None:
    for template in (PLAIN, "{}"):
        for side in sides:
            ious = dense_ious(clip, scenes, side=side, template=template)
            objects, grounds = ious[: len(object_names())], ious[len(object_names()) :]
            log.info(
                "%-18s side %4d  mIoU %.3f  objects %.3f  textures %.3f",
                template, side, ious.nanmean(), objects.nanmean(), grounds.nanmean(),
            )  # fmt: skip
    drawn = [draw_example(FIRST_EXAMPLE + number) for number in range(128)]
    images = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image, _ in drawn]
    log.info("retrieval in 128 examples %.3f", retrieval(clip, images, [text for _, text in drawn]))
    images = [
        F.interpolate(
            torch.from_numpy(scene.image).permute(2, 0, 1)[None].float(), 128, mode="area"
        )[0].byte()
        for scene in scenes[:128]
    ]
    captions = [scene.caption for scene in scenes[:128]]
    log.info("retrieval in %d scenes %.3f", len(captions), retrieval(clip, images, captions))


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description="Measure a packed model on scenes.")
    parser.add_argument("model", help="emoji-rn, emoji-vit or a file of tools.emoji_clip.package")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 384, 512])
    parser.add_argument("--count", type=int, default=200, help="number of scenes")
    parser.add_argument("--first", type=int, default=FIRST_SCENE, help="seed of the first scene")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    seeds = range(arguments.first, arguments.first + arguments.count)
    _report(load_clip(arguments.model), arguments.sides, [draw_scene(seed) for seed in seeds])


if __name__ == "__main__":
    main()
