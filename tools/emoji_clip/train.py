"""Train a tiny CLIP on images and captions: `python -m tools.emoji_clip.train --model emoji-rn`.

Nothing here sees a mask: `tools.emoji_clip.examples` draws images with captions and no labels.
Checkpoints (`--out`) can be resumed, also with more steps, and packed for shipping by
`python -m tools.emoji_clip.package`. How good the dense labels are is measured elsewhere, by
`python -m tools.emoji_clip.measure`.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maskclip.clip.towers import build_tower
from maskclip.core.files import atomic_path
from maskclip.core.method import CLEAN
from maskclip.emoji.captions import class_names, names_in, pairs_in, random_template, trained_pairs
from tools.emoji_clip.examples import draw_example
from tools.emoji_clip.losses import contrast, dense_colors, dense_names
from tools.emoji_clip.models import CONFIGS, build, image_and_dense, tokenize

log = logging.getLogger(__name__)

SIZE = 128  # side of the examples
REPORT, SAVE = 50, 100  # steps between two lines of the log, two checkpoints
SEEDS_PER_RUN = 2**32  # a run with seed s draws the examples from s * 2**32 on


@dataclass(frozen=True)
class TrainSettings:
    """The settings of a run.

    Attributes:
        model: a name of `models.CONFIGS`.
        steps: batches in all; the learning rate falls to 0 over the last `cooldown` of them.
        batch_size: examples a batch.
        lr: peak learning rate of AdamW, reached after `warmup` steps.
        weight_decay: of matrices; vectors have none.
        dense: weight of the losses on dense features, beside 1 for CLIP's own.
        wide: whether every other batch is a quarter as many examples of twice the side, for the
            losses on dense features alone: it is on larger images than CLIP's own that they are
            used, where borders are far and objects fill more positions.
        seed: of the weights, the examples and the prompts.
        cooldown: share of the steps over which the learning rate falls.
        text: a checkpoint whose text tower is taken and kept as it is.
    """

    model: str = "emoji-rn"
    steps: int = 3000
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05
    dense: float = 1.0
    wide: bool = False
    warmup: int = 100
    seed: int = 0
    cooldown: float = 0.35
    text: Path | None = None


class Batches(Dataset[tuple[Tensor, list[str]]]):
    """The batches of a run from a step on, each drawn when it is read."""

    def __init__(self, config: TrainSettings, *, first: int) -> None:
        self.config = config
        self.first = first

    def __len__(self) -> int:
        return self.config.steps - self.first

    def __getitem__(self, number: int) -> tuple[Tensor, list[str]]:
        """Return images (B, 3, side, side) uint8 and their captions."""
        step = self.first + number
        seed = self.config.seed * SEEDS_PER_RUN + step * self.config.batch_size
        count, side = self.config.batch_size, SIZE
        if self.config.wide and step % 2:
            count, side = max(count // 4, 1), 2 * SIZE
        drawn = [draw_example(seed + place, size=side) for place in range(count)]
        images = np.stack([image for image, _ in drawn])
        return torch.from_numpy(images).permute(0, 3, 1, 2), [caption for _, caption in drawn]


def lr_at(step: int, config: TrainSettings) -> float:
    """Return the learning rate of a step: a ramp, a plateau, a linear fall to 0."""
    up = min((step + 1) / config.warmup, 1.0)
    down = min((config.steps - step) / max(config.cooldown * config.steps, 1), 1.0)
    return config.lr * min(up, down)


def losses_of(
    model: CLIP, images: Tensor, captions: list[str], generator: np.random.Generator
) -> dict[str, Tensor]:
    """Return the losses of a batch by name: images (B, 3, H, W) uint8, and their captions.

    CLIP's own loss, "clip", is there when the images are of the model's native size.
    """
    device = images.device
    names, pairs = class_names(), trained_pairs()
    prompts = [random_template(generator).format(name) for name in names]
    prompts += [random_template(generator).format(" ".join(pair)) for pair in pairs]
    rows = model.encode_text(tokenize([*prompts, *captions]).to(device), normalize=True)
    scale = model.logit_scale.exp().clamp(max=100)
    losses = {}
    if images.shape[-1] == SIZE:
        pooled, dense = image_and_dense(model.visual, normalize(images))
        logits = scale * F.normalize(pooled, dim=1) @ rows[len(prompts) :].T
        losses["clip"] = contrast(logits.float(), captions)
    else:
        tower = build_tower(model.visual, CLEAN)
        dense = tower.dense(normalize(images), keys=False, image=False).features
    features = scale * F.normalize(dense.flatten(2), dim=1)
    maps = torch.einsum("bdn,kd->bkn", features, rows[: len(prompts)]).float()
    named = _table([names_in(caption) for caption in captions], names).to(device)
    shown = _table([pairs_in(caption) for caption in captions], pairs).to(device)
    rivals = torch.tensor([[a[1] == b[1] for b in pairs] for a in pairs], device=device)
    losses["inside"], losses["found"] = dense_names(maps[:, : len(names)], named)
    losses["color"] = dense_colors(maps[:, len(names) :], shown, rivals)
    return losses


def normalize(images: Tensor) -> Tensor:
    """Turn uint8 pixels (B, 3, H, W) into CLIP's normalised floats."""
    mean = torch.tensor(OPENAI_DATASET_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(OPENAI_DATASET_STD, device=images.device).view(3, 1, 1)
    return (images / 255 - mean) / std


def _table(sets: list[frozenset[Any]], columns: tuple[Any, ...]) -> Tensor:
    return torch.tensor([[column in found for column in columns] for found in sets])


def train(
    config: TrainSettings, *, out: Path, device: str = "cpu", workers: int = 1, resume: bool = False
) -> CLIP:
    """Train a model and keep its checkpoint in `out`.

    Raises:
        FileNotFoundError: `resume` without a checkpoint.
    """
    torch.manual_seed(config.seed)
    model = build(config.model).to(device)
    if config.text is not None:
        _take_text(model, config.text)
    optimizer = _optimizer(model, config)
    step = _restore(out, model, optimizer, device) if resume else 0
    began, recent = time.monotonic(), []
    batches = DataLoader(Batches(config, first=step), batch_size=None, num_workers=workers)
    for images, captions in batches:
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, config)
        generator = np.random.default_rng([config.seed, step])  # the same prompts when resumed
        with torch.autocast(device, torch.bfloat16):
            losses = losses_of(model, images.to(device), captions, generator)
        _descend(model, optimizer, losses, config)
        recent.append({name: float(value.detach()) for name, value in losses.items()})
        step += 1
        if step % REPORT == 0 or step == config.steps:
            _report(step, recent, time.monotonic() - began)
            began, recent = time.monotonic(), []
        if step % SAVE == 0 or step == config.steps:
            _save(out, model, optimizer, step, config)
    return model


def _descend(
    model: CLIP, optimizer: torch.optim.Optimizer, losses: dict[str, Tensor], config: TrainSettings
) -> None:
    dense = losses["inside"] + losses["found"] + 0.5 * losses["color"]
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(losses.get("clip", 0) + config.dense * dense)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _report(step: int, recent: list[dict[str, float]], seconds: float) -> None:
    values: dict[str, list[float]] = {name: [] for losses in recent for name in losses}
    for losses in recent:
        for name, value in losses.items():
            values[name].append(value)
    means = "  ".join(f"{name} {sum(found) / len(found):.3f}" for name, found in values.items())
    log.info("step %d  %s  %.2f s/step", step, means, seconds / len(recent))


def _optimizer(model: CLIP, config: TrainSettings) -> torch.optim.AdamW:
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learnt if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in learnt if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))


def _take_text(model: CLIP, checkpoint: Path) -> None:
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")["model"]
    model.load_state_dict(
        {name: value for name, value in state.items() if not name.startswith("visual.")},
        strict=False,
    )
    for name, parameter in model.named_parameters():
        if not name.startswith("visual.") and name != "logit_scale":
            parameter.requires_grad_(False)


def _save(
    out: Path, model: CLIP, optimizer: torch.optim.Optimizer, step: int, config: TrainSettings
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "config": {name: str(value) for name, value in dataclasses.asdict(config).items()},
    }
    with atomic_path(out / "last.pt") as temporary:
        torch.save(state, temporary)


def _restore(out: Path, model: CLIP, optimizer: torch.optim.Optimizer, device: str) -> int:
    if not (out / "last.pt").is_file():
        raise FileNotFoundError(f"nothing to resume: {out / 'last.pt'} is missing")
    state = torch.load(out / "last.pt", weights_only=True, map_location=device)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train a tiny CLIP on images and captions.")
    parser.add_argument("--model", choices=sorted(CONFIGS), default="emoji-rn")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=TrainSettings.steps)
    parser.add_argument("--batch-size", type=int, default=TrainSettings.batch_size)
    parser.add_argument("--lr", type=float, default=TrainSettings.lr)
    parser.add_argument("--cooldown", type=float, default=TrainSettings.cooldown)
    parser.add_argument("--seed", type=int, default=TrainSettings.seed)
    parser.add_argument("--wide", action="store_true", help="also train on images twice the side")
    parser.add_argument("--text", type=Path, help="a checkpoint whose text tower to keep")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw examples")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = {field.name for field in dataclasses.fields(TrainSettings)} & vars(arguments).keys()
    config = TrainSettings(**{name: getattr(arguments, name) for name in settings})
    train(
        config,
        out=arguments.out,
        device=device,
        workers=arguments.workers,
        resume=arguments.resume,
    )


if __name__ == "__main__":
    main()
