"""What can be measured: a CLIP that reads words, a student, or a folder of anyone's predictions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from maskclip.core.config import Options
from maskclip.core.errors import MaskCLIPError
from maskclip.core.samples import Ids, Samples
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.masks import LabelRule, read_ids
from maskclip.tasks.photos import PhotoSegmenter
from maskclip.tasks.segmenter import Segmenter

if TYPE_CHECKING:
    from maskclip.tasks.student_segmenter import StudentSegmenter

_ENDINGS = (".png", "_labels.png")  # the second is what `maskclip segment` writes
_OF_STUDENTS = ("antialias", "upsample", "resizes")  # what a student reads of a method


class MeasuredPredictor(Protocol):
    """A predictor that can say what it is."""

    def __call__(self, name: str, image: Image.Image, /) -> Ids:
        """Label an image: (id, RGB image W x H) -> class ids (H, W)."""

    def metadata(self) -> dict[str, Any]:
        """Return what is needed to repeat its predictions, ready for JSON."""


@dataclass(frozen=True, eq=False)
class _ModelPredictor:
    """A model that labels images with a data set's classes."""

    segmenter: PhotoSegmenter
    vocabulary: Vocabulary
    options: Options
    protocol: str

    def __call__(self, name: str, image: Image.Image, /) -> Ids:
        """Label an image: (id, RGB image W x H) -> class ids (H, W)."""
        return self.segmenter.segment(image, self.vocabulary, **asdict(self.options)).labels

    def metadata(self) -> dict[str, Any]:
        """Return its weights, how it looks at images, and in what it computes."""
        return {
            "weights": self.segmenter.fingerprint,
            "protocol": self.protocol,
            "options": asdict(self.options),
            "precision": str(self.segmenter.precision).removeprefix("torch."),
            "device": self.segmenter.device.type,
        }


@dataclass(frozen=True, eq=False)
class ZeroShotPredictor(_ModelPredictor):
    """A CLIP that is given a data set's classes as words."""

    segmenter: Segmenter

    def metadata(self) -> dict[str, Any]:
        """Return the model, its arithmetic, its words and how it looks at images."""
        segmenter = self.segmenter
        return {
            **super().metadata(),
            "model": segmenter.clip.name,
            "method": segmenter.method.name,
            "arithmetic": asdict(segmenter.method),
            "templates": segmenter.templates,
            "prompts": dict(zip(self.vocabulary.names, self.vocabulary.prompts, strict=True)),
            "background": self.vocabulary.background_rule,
        }


@dataclass(frozen=True, eq=False)
class StudentPredictor(_ModelPredictor):
    """A trained student, whose classes are a data set's."""

    segmenter: StudentSegmenter

    def metadata(self) -> dict[str, Any]:
        """Return the student, its architecture and training, and how it looks at images."""
        segmenter = self.segmenter
        return {
            **super().metadata(),
            "model": segmenter.name,
            "student": asdict(segmenter.student.config),
            "step": segmenter.trained.step,
            "arithmetic": {name: getattr(segmenter.method, name) for name in _OF_STUDENTS},
        }


@dataclass(frozen=True, eq=False)
class PredictedFolder:
    """Label PNGs named by image id, whose values (or colours) are those of a vocabulary."""

    folder: Path
    vocabulary: Vocabulary

    def __call__(self, name: str, image: Image.Image, /) -> Ids:
        """Read the prediction of an image; pixels without one hold the ignored label, and miss.

        Raises:
            MaskCLIPError: missing, damaged, of another size, or no class ids.
        """
        path = self.path(name)
        rule = LabelRule.of(self.vocabulary)
        ids = read_ids(path, rule)
        if ids.shape != (image.height, image.width):
            raise MaskCLIPError(
                f"{path}: the prediction is {ids.shape[1]}x{ids.shape[0]} but its image "
                f"{image.width}x{image.height}"
            )
        invalid = rule.invalid(ids)
        if invalid:
            raise MaskCLIPError(
                f"{path}: {next(iter(invalid))} is no class: expected 0..{rule.classes - 1}, or "
                f"{rule.ignore} where nothing is predicted"
            )
        return ids

    def path(self, name: str) -> Path:
        """Return the file of an image's prediction.

        Raises:
            MaskCLIPError: there is none.
        """
        path = self._find(name)
        if path is None:
            raise MaskCLIPError(f"no prediction {self.folder / name}{_ENDINGS[0]}")
        return path

    def check(self, samples: Samples, count: int) -> None:
        """Make sure that the first `count` samples have a file each, before any is scored.

        Raises:
            MaskCLIPError: the folder or a file is missing.
        """
        if not self.folder.is_dir():
            raise MaskCLIPError(f"no folder of predictions: {self.folder}")
        missing = [name for name in samples.names[:count] if self._find(name) is None]
        if missing:
            raise MaskCLIPError(
                f"{self.folder}: {len(missing):,} of {count:,} predictions are missing, "
                f"the first {missing[0]}{_ENDINGS[0]}"
            )

    def _find(self, name: str) -> Path | None:
        paths = (self.folder / f"{name}{ending}" for ending in _ENDINGS)
        return next((path for path in paths if path.is_file()), None)

    def metadata(self) -> dict[str, Any]:
        """Return where the predictions are."""
        return {"predictions": str(self.folder), "protocol": None}
