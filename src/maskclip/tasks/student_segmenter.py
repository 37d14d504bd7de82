"""A trained student as a segmenter: images in, a `Segmentation` of its own classes out."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from maskclip.core.config import DEFAULT_OPTIONS, Options
from maskclip.core.device import choose_precision
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import CLEAN, Method
from maskclip.core.vocabulary import Background, Vocabulary
from maskclip.plus.files import TrainedStudent, file_fingerprint, read_student
from maskclip.tasks.photos import Classes, Maps, Network, PhotoSegmenter, as_vocabulary

_NAMED = 6  # classes that a message lists


def load_student(
    path: Path, *, method: Method = CLEAN, device: torch.device, precision: str = "auto"
) -> StudentSegmenter:
    """Read a student's file as a segmenter.

    Raises:
        MaskCLIPError: the file cannot be used, or there is no such precision.
    """
    return StudentSegmenter(
        read_student(path),
        name=str(path),
        fingerprint=file_fingerprint(path),
        method=method,
        device=device,
        precision=precision,
    )


class StudentSegmenter(PhotoSegmenter):
    """A student that labels pixels. Made by `load` from a student's file.

    Args:
        trained: the student; it is moved to the device.
        name: what messages and results call it.
        fingerprint: a hash of its file.
        method: how images are shrunk and logits enlarged; the rest of it is CLIP's.
        device, precision: as `load` takes them, the device chosen.
    """

    def __init__(
        self,
        trained: TrainedStudent,
        *,
        name: str,
        fingerprint: str,
        method: Method,
        device: torch.device,
        precision: str,
    ) -> None:
        self.trained = trained
        self.name = name
        self._fingerprint = fingerprint
        self.method = method
        self.device = device
        self.student = trained.student.to(device).eval()
        size = sum(weight.numel() for weight in self.student.parameters())
        self.precision = choose_precision(precision, device, parameters=size)

    @property
    def fingerprint(self) -> str:
        """A hash of the file, 16 hex digits."""
        return self._fingerprint

    def prepare(
        self,
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        options: Options = DEFAULT_OPTIONS,
    ) -> Vocabulary:
        """Return the vocabulary that `segment` would use; refuse now what it would refuse.

        Raises:
            MaskCLIPError: the classes are not the student's, or an option is one of CLIP's.
        """
        refuse_options_of_clip(
            self.name,
            background=background is not None,
            key_smoothing=options.key_smoothing is not None,
            prompt_denoising=options.prompt_denoising is not None,
        )
        own, count = self.trained.vocabulary, len(self.trained)
        if classes is None:
            if own is None:
                raise MaskCLIPError(
                    f"{self.name} carries no class names: give its {count} classes in the order of "
                    "its training, or put them into the file with `maskclip convert`"
                )
            return own
        given = as_vocabulary(classes)
        if own is None and len(given) != count:
            raise MaskCLIPError(
                f"{self.name} tells {count} classes apart, not {len(given)}: give those that it "
                "was trained on, in their order"
            )
        if own is not None and given.names != own.names:
            raise MaskCLIPError(
                f"{self.name} knows its own {count} classes alone, in this order: "
                f"{_listed(own.names)}; for other classes take a CLIP"
            )
        return given

    def network(self, vocabulary: Vocabulary, options: Options) -> Network:
        """Return what reads photos; a student's classes and options are its own."""
        return Network(
            read=self._maps,
            short_side=self.trained.short_side,
            antialias=self.method.antialias,
            resizes=self.method.resizes,
            device=self.device,
        )

    def _maps(self, crops: Tensor) -> Maps:
        """Return probabilities, or logits, on the grid, which is stretched over the crops."""
        reduced = self.precision != torch.float32
        with torch.autocast(self.device.type, dtype=self.precision, enabled=reduced):
            features = self.student.features(crops)
        maps = self.student.logits(features.float())
        if self.method.upsample == "probabilities":
            maps = maps.softmax(dim=1)
        height, width = crops.shape[-2:]
        return maps, (height, width)


def refuse_options_of_clip(name: str, **given: bool) -> None:
    """Refuse what a student has no use for.

    Args:
        name: the student, for the message.
        given: option -> whether it was given.

    Raises:
        MaskCLIPError: names the first that was.
    """
    for option, present in given.items():
        if present:
            raise MaskCLIPError(
                f"{option.replace('_', ' ')} belongs to CLIP, and {name} is a trained student: "
                "leave it out"
            )


def _listed(names: tuple[str, ...]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
