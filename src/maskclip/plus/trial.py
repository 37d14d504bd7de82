"""What the first step of a training will meet, found without computing it: on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from maskclip.core.dense import similarity
from maskclip.plus.config import TEACHER, TrainingError
from maskclip.plus.student import Student


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
            f"batch_size: this student's BatchNorms need more than {images} image"
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
