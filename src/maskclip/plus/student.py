"""The student of MaskCLIP+: a segmentation network whose classifier is frozen text rows.

B images, K classes, D embedding channels, H x W pixels, h x w grid positions: the pixels over the
stride of the decoder, rounded up. It is 8 for the published DeepLabv2 and 4 for DeepLabv3+.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from maskclip.clip.encoder import normalize_pixels
from maskclip.clip.fitting import build_fitting
from maskclip.core.dense import pool_synonyms, similarity
from maskclip.plus.config import RANDOM, TEACHER, StudentConfig, StudentError, TrainingError
from maskclip.plus.from_teacher import Addition
from maskclip.plus.networks import Network, build_network


class Student(nn.Module):
    """A backbone, a decoder, and text rows as the classifier; `build_student` puts it together.

    `torch.export` takes it with a dynamic batch, height and width: published students for any side
    from 16 px, others for multiples of 32 px from 128, which need no padding.

    Args:
        config: the architecture.
        rows: (P, D) text rows; a buffer, never trained, unless the architecture says so.
        network: of that architecture.

    Attributes:
        classes: the class of each row of `classifier`, of which the best counts.

    Raises:
        StudentError: the rows do not fit the architecture.
    """

    rows: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: StudentConfig, rows: Tensor, network: Network) -> None:
        super().__init__()
        if sum(config.counts or (len(rows),)) != len(rows):
            raise StudentError(f"counts: they are of {sum(config.counts)} rows, got {len(rows)}")
        if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] != config.embed_dim:
            raise StudentError(
                f"text rows: expected (classes, {config.embed_dim}), got {tuple(rows.shape)}; take "
                "the rows of the CLIP that labels for this student, or set embed_dim to its own"
            )
        self.config = config
        self.backbone = network.backbone
        self.decoder = network.decoder
        self.stride = network.stride
        if config.trained_rows:
            self.rows = nn.Parameter(rows.detach().float().clone())
        else:
            self.register_buffer("rows", rows.detach().float().clone())
        counts = (*((1,) if config.background else ()), *(config.counts or (1,) * len(rows)))
        self.classes = tuple(i for i, count in enumerate(counts) for _ in range(count))
        # Drawn as published; weight decay applies to it (published code, P3).
        row = torch.randn(1, config.embed_dim) if config.background else None
        self.background = None if row is None else nn.Parameter(row)
        for name, values in (("mean", network.mean), ("std", network.std)):
            buffer = torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Return what the text rows classify, not normalised: (B, D, h, w).

        Those of the published students are >= 0.

        Args:
            images: (B, 3, H, W) RGB; uint8, or floating point in [0, 1]; any H and W from 1 px.

        Raises:
            ValueError: the batch has another shape or dtype.
        """
        stages = self.backbone(normalize_pixels(images, self.mean, self.std))
        features: Tensor = self.decoder(*stages)
        return self._within(features, images)

    def _within(self, maps: Tensor, images: Tensor) -> Tensor:
        """Return the positions of the images alone: networks pad them."""
        height, width = ((side - 1) // self.stride + 1 for side in images.shape[-2:])
        if torch.compiler.is_exporting():  # a slice would bind the program to sizes that are padded
            rows, columns = (torch.arange(n, device=maps.device) for n in (height, width))
            return maps.index_select(2, rows).index_select(3, columns)
        return maps[..., :height, :width]

    def classifier(self) -> Tensor:
        """Return the rows (P, D) of all classes; the background's, where there is one, first."""
        if self.background is None:
            return self.rows
        return torch.cat([F.normalize(self.background, dim=1), self.rows])

    def logits(self, features: Tensor) -> Tensor:
        """Classify features (B, D, h, w) by inner products alone (published code, P3).

        Mixed precision ends here: labels and losses depend on small differences of logits.

        Returns:
            (B, K, h, w) float32.
        """
        with torch.autocast(features.device.type, enabled=False):
            return self._pooled(similarity(features, self.classifier(), normalize=False))

    def encode(self, images: Tensor) -> Tensor:
        """Return what `encoded_rows` are compared with on the grid, (B, D, h, w).

        Features; or logits, of one channel a class, where the rows were trained: then no words but
        those of the training will do, and features would be most of the work.
        """
        return self(images) if self.config.trained_rows else self.features(images)

    def encoded_rows(self) -> tuple[Tensor, tuple[int, ...]]:
        """Return the rows (P, D) whose inner products with `encode` are logits, and their classes.

        Of a class's rows the best counts.
        """
        if self.config.trained_rows:
            return torch.eye(len(self), device=self.rows.device), tuple(range(len(self)))
        return self.classifier().detach(), self.classes

    def _pooled(self, maps: Tensor) -> Tensor:
        return pool_synonyms(maps, self.classes) if self.config.counts else maps

    def __len__(self) -> int:
        """Return the number of classes, a background included."""
        return self.classes[-1] + 1

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images (B, 3, H, W) on the grid: (B, K, h, w) float32.

        Those of `features`, by whatever way is the shortest.
        """
        if not isinstance(self.decoder, Addition):
            return self.logits(self.features(images))
        stages = self.backbone(normalize_pixels(images, self.mean, self.std))
        maps = self.decoder.compare(*stages, rows=self.classifier())
        return self._pooled(self._within(maps, images))


def build_student(config: StudentConfig, rows: Tensor, *, weights: str = RANDOM) -> Student:
    """Build a student, in training mode.

    Args:
        config: the architecture.
        rows: (C, D) text rows, unit length.
        weights: from which the backbone starts, as `first_weights` takes them.

    Raises:
        MaskCLIPError: the rows do not fit, there is no such decoder or backbone, they do not go
            together, or the weights cannot be had or do not fit.
    """
    return Student(config, rows, build_network(config, weights=weights))


def student_from(
    config: StudentConfig,
    state: Mapping[str, Tensor],
    *,
    source: str,
    spelling: Callable[[str], str] = str,
) -> Student:
    """Build a student of given weights, in eval mode; memory is taken only once all shapes fit.

    Args:
        config: the architecture.
        state: the weights, text rows included.
        source: where they come from, for messages.
        spelling: how `state` spells a name of the student's.

    Raises:
        MaskCLIPError: the weights do not fit the architecture, or it cannot be built.
    """
    rows = state.get(spelling("rows"))
    if rows is None:
        raise StudentError(f"{source}: no student in it: the text rows are missing")
    build = partial(build_student, config, rows)
    try:
        return build_fitting(build, state, source=source, spelling=spelling).eval()
    except StudentError as error:
        raise StudentError(f"{source}: {error}") from error
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond any tensor's
        raise StudentError(f"{source}: no student can have the architecture {config}") from error


@dataclass(frozen=True)
class Trial:
    """What a step does with a student.

    Attributes:
        unused: the weights that have no gradient: no pixel's label depends on them.
        known: whether that could be found out.
    """

    unused: frozenset[str] = frozenset()
    known: bool = True


def try_step(student: Student, *, images: int, crop: tuple[int, int]) -> Trial:
    """Take a step with tensors that have shapes and no values; the student stays as it is.

    Args:
        student: in training mode, with its BatchNorms as they will be.
        images: that are normalised together.
        crop: (height, width) of them in px.

    Raises:
        TrainingError: BatchNorms would have a single value a channel, of which there is no
            variance.
    """
    whole = _Logits(student)
    weights = {
        name: torch.empty_like(weight, device="meta").requires_grad_(weight.requires_grad)
        for name, weight in whole.named_parameters()
    }
    buffers = {
        name: torch.empty_like(buffer, device="meta") for name, buffer in whole.named_buffers()
    }
    pixels = torch.empty((images, 3, *crop), dtype=torch.uint8, device="meta")
    try:
        functional_call(whole, {**weights, **buffers}, (pixels,)).sum().backward()
    except ValueError as error:
        if "Expected more than 1" not in str(error):
            return Trial(known=False)
        raise TrainingError(
            f"`batch_size`: this student's BatchNorms need more than {images} image"
            f"{'s' * (images != 1)} of {crop[1]}x{crop[0]} px a process: take a larger "
            "`batch_size`, fewer processes, or another decoder, such as unet"
        ) from error
    except Exception:  # an operation that the meta device does not know: the first step will tell
        return Trial(known=False)
    unused = (n for n, weight in weights.items() if weight.requires_grad and weight.grad is None)
    return Trial(frozenset(name.removeprefix("student.") for name in unused))


class _Logits(nn.Module):
    """The logits of a student, which knows autocast; the meta device does not."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> Tensor:
        student = self.student
        if student.config.decoder == TEACHER:
            return student.forward(images)
        return similarity(student.features(images), student.classifier(), normalize=False)
