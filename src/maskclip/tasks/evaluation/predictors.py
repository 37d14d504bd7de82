"""What can be evaluated: a zero-shot CLIP, a trained student, or a folder of predictions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, get_type_hints

import torch
from PIL import Image

from maskclip.clip.choice import settle
from maskclip.clip.prompts import OnWord, template_set
from maskclip.core.cleaning import drop_unsure
from maskclip.core.config import PREVIEWS, ModelConfig, Options, RefinementValues, ViewValues
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import CLEAN, PUBLISHED
from maskclip.core.methods import AUTO, get_method
from maskclip.core.samples import Ids, Samples
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.annotations import MaskFolder
from maskclip.data.masks import SizeError
from maskclip.tasks.evaluation.settings import (
    Evaluation,
    default_templates,
    method_under,
    options_under,
    protocol_notes,
    vocabulary_under,
)
from maskclip.tasks.exported import ExportedSegmenter, load_exported
from maskclip.tasks.model_names import names_clip, names_exported
from maskclip.tasks.photo_segmenter import EncodedPhoto, Segmenter
from maskclip.tasks.runtimes import TORCH, placed, run_by
from maskclip.tasks.segmenter import CLIPSegmenter, load
from maskclip.tasks.voting import Voting
from maskclip.tasks.without_clip import (
    PreviewSegmenter,
    StudentSegmenter,
    load_preview,
    load_student,
    refuse_settings_of_clip,
)

_STUDENT_FIELDS = ("antialias", "upsample", "resizes")  # of a method; the others are CLIP's


_VIEW = tuple(get_type_hints(ViewValues))
_REFINEMENT = tuple(get_type_hints(RefinementValues))


class Predictor(Protocol):
    """Labels images, and can describe itself."""

    def __call__(self, name: str, image: Image.Image, /) -> Ids:
        """Label an image: (id, RGB image W x H) -> class ids (H, W)."""

    def metadata(self) -> dict[str, Any]:
        """Return what is needed to repeat the predictions, ready for JSON."""


@dataclass(frozen=True, eq=False)
class ModelPredictor:
    """A model that labels images with the classes of a data set.

    `regions` says of which segments pixels vote, beside what the options say: a hash or version.
    """

    segmenter: Segmenter
    vocabulary: Vocabulary
    options: Options
    protocol: str
    voting: Voting | None = None
    regions: str | None = None

    def __call__(self, name: str, image: Image.Image, /) -> Ids:
        """Label an image: (id, RGB image W x H) -> class ids (H, W)."""
        folder = None if self.voting is None else self.voting.folder
        if folder is None:
            return self.segmenter.segment(image, self.vocabulary, **asdict(self.options)).labels
        options = replace(self.options, regions=None)  # the image has no path to find its map by
        words = self.vocabulary.with_confidence({})  # what is unsure is dropped after the vote
        found = self.segmenter.segment(image, words, **asdict(options))
        found = found.voted(folder.read(name, image.size))
        return drop_unsure(found.labels, found.scores, self.vocabulary)

    def refined(self, options: Options) -> Self:
        """Return the same predictor by other refinements, and with superpixels or without.

        Raises:
            MaskCLIPError: the model has not what a refinement needs, or what makes superpixels is
                not installed.
        """
        self.segmenter.prepare(self.vocabulary, options=options)
        voting = Voting.of(options)
        regions = None if voting is None else voting.fingerprint(())
        return replace(self, options=options, voting=voting, regions=regions)

    def encode(self, image: Image.Image, /, *, then: Iterable[ModelPredictor]) -> EncodedPhoto:
        """Run the network on an image, as these predictors, which share it, need it to `score`."""
        needs = [one.segmenter.scoring(one.vocabulary, one.options) for one in then]
        keys = any(scoring.needs_keys for scoring in needs)
        whole = any(scoring.needs_image for scoring in needs)
        view = {name: getattr(self.options, name) for name in _VIEW}
        return self.segmenter.encode(image, keys=keys, image=whole, **view)

    def score(self, encoded: EncodedPhoto) -> Ids:
        """Label an image that was encoded: class ids (H, W)."""
        refinement = {name: getattr(self.options, name) for name in _REFINEMENT}
        return self.segmenter.score(encoded, self.vocabulary, **refinement).labels

    def metadata(self) -> dict[str, Any]:
        """Return the weights, the protocol and options, the precision and the device."""
        needed = dict(zip(self.vocabulary.names, self.vocabulary.confidence, strict=False))
        return {
            "weights": self.segmenter.fingerprint,
            "protocol": self.protocol,
            "options": asdict(self.options),
            **({} if self.regions is None else {"regions": self.regions}),
            **({"confidence": needed} if needed else {}),
            "precision": str(self.segmenter.precision).removeprefix("torch."),
            **({} if self.segmenter.runtime == TORCH else {"runtime": self.segmenter.runtime}),
            "device": self.segmenter.device.type,
        }


@dataclass(frozen=True, eq=False)
class ZeroShotPredictor(ModelPredictor):
    """A CLIP that is prompted with the classes of a data set.

    Attributes:
        evaluation: of which it is the predictor; says whose settings the protocol takes.
    """

    segmenter: CLIPSegmenter
    evaluation: Evaluation | None = None

    def metadata(self) -> dict[str, Any]:
        """Return those of any model, and the method and the prompts."""
        segmenter = self.segmenter
        return {
            **super().metadata(),
            "model": segmenter.clip.name,
            **({} if segmenter.proxy is None else {"proxy": segmenter.proxy}),
            "method": segmenter.method.name,
            **({"auto": segmenter.why} if segmenter.why else {}),
            "arithmetic": asdict(segmenter.method),
            "temperature": segmenter.encoder.temperature,
            "templates": segmenter.templates,
            **({"tokenizer": tokens} if (tokens := segmenter.tokenizer_identity()) else {}),
            **({"language": clip.language} if (clip := segmenter.clip).language else {}),
            "prompts": dict(zip(self.vocabulary.names, self.vocabulary.prompts, strict=True)),
            "background": self.vocabulary.background_rule,
            **self._notes(),
        }

    def _notes(self) -> dict[str, Any]:
        if self.evaluation is None:
            return {}
        return protocol_notes(replace(self.evaluation, options=self.options))


@dataclass(frozen=True, eq=False)
class StudentPredictor(ModelPredictor):
    """A trained student whose classes are those of a data set."""

    segmenter: StudentSegmenter

    def metadata(self) -> dict[str, Any]:
        """Return those of any model, the student's architecture and step, and its new words."""
        segmenter = self.segmenter
        new = segmenter.untrained(self.vocabulary)
        return {
            **super().metadata(),
            "model": segmenter.name,
            "student": asdict(segmenter.student.config),
            "step": segmenter.trained.step,
            "trained_at": segmenter.short_side,
            **({"untrained": new, "templates": segmenter.trained.templates} if new else {}),
            "arithmetic": {name: getattr(segmenter.method, name) for name in _STUDENT_FIELDS},
        }


@dataclass(frozen=True, eq=False)
class PreviewPredictor(ModelPredictor):
    """The preview without CLIP, which is given the classes of a data set as words."""

    segmenter: PreviewSegmenter

    def metadata(self) -> dict[str, Any]:
        """Return those of any model, and the words."""
        return {
            **super().metadata(),
            "model": self.segmenter.name,
            "prompts": dict(zip(self.vocabulary.names, self.vocabulary.prompts, strict=True)),
            "background": self.vocabulary.background_rule,
            "arithmetic": {name: getattr(self.segmenter.method, name) for name in _STUDENT_FIELDS},
        }


@dataclass(frozen=True, eq=False)
class ExportedPredictor(ModelPredictor):
    """An exported file whose classes are those of a data set."""

    segmenter: ExportedSegmenter

    def metadata(self) -> dict[str, Any]:
        """Return those of any model, what the file says of itself, and its words."""
        found = self.segmenter.description
        return {
            **super().metadata(),
            "model": self.segmenter.name,
            "exported": {"model": found.model, "weights": found.fingerprint},
            "method": found.method,
            "templates": found.templates,
            "prompts": dict(zip(self.vocabulary.names, self.vocabulary.prompts, strict=True)),
            "background": self.vocabulary.background_rule,
            "arithmetic": {name: getattr(self.segmenter.method, name) for name in _STUDENT_FIELDS},
        }


@dataclass(frozen=True, eq=False)
class PredictedFolder:
    """Label images named by image id, as `MaskFolder` finds them; of `PredictedFolder.open`."""

    folder: Path
    masks: MaskFolder

    @classmethod
    def open(cls, folder: Path, samples: Samples, count: int) -> PredictedFolder:
        """Find the predictions for the first `count` samples, before any is scored.

        Raises:
            MaskCLIPError: the folder or a prediction is missing, or one image has several.
        """
        if not folder.is_dir():
            raise MaskCLIPError(f"no folder of predictions: {folder}")
        names = samples.names[:count]
        masks = MaskFolder(folder, names, samples.vocabulary)
        missing = [name for name in names if name not in masks.photos]
        if missing:
            ours = folder / "png"
            hint = f": did you mean {ours}?" if ours.is_dir() else ""
            raise MaskCLIPError(
                f"{folder}: {len(missing):,} of {count:,} predictions are missing, "
                f"the first {missing[0]}.png{hint}"
            )
        return cls(folder, masks)

    def __call__(self, name: str, image: Image.Image, /) -> Ids:
        """Read the prediction for an image; ignored pixels in it count as wrong.

        Raises:
            MaskCLIPError: damaged, of another size, or not class ids.
        """
        path = self.masks.where(name)
        try:
            ids = self.masks.read(name, image.size)
        except SizeError as error:
            raise SizeError(str(error).replace("the mask is", "the prediction is")) from None
        rule = self.masks.rule
        invalid = rule.invalid(ids)
        if invalid:
            hint = rule.counted_from_one(invalid, zero=bool((ids == 0).any()))
            raise MaskCLIPError(
                f"{path}: {next(iter(invalid))} is not a class: expected 0..{rule.classes - 1}, or "
                f"{rule.ignore} where nothing is predicted{hint}"
            )
        return ids

    def metadata(self) -> dict[str, Any]:
        """Return the folder; predictions have no protocol."""
        return {"predictions": str(self.folder), "protocol": None}


def settle_method(evaluation: Evaluation, samples: Samples) -> tuple[Evaluation, str]:
    """Return an evaluation whose method is named, and why `auto` became it; "" where it was named.

    Raises:
        MaskCLIPError: the model cannot be loaded, or an option cannot be used.
    """
    if evaluation.model.method != AUTO or not names_clip(evaluation.model.name):
        return evaluation, ""
    # Which method it will be is not known yet: the sizes are those of most.
    options = options_under(evaluation.protocol, evaluation.options, samples, CLEAN)
    model, why = settle(evaluation.model, options)
    return replace(evaluation, model=model), why


def count_prompts(evaluation: Evaluation, samples: Samples) -> tuple[int, int]:
    """Return how many words a CLIP is given, and in how many prompts each; (0, 0) without CLIP.

    Raises:
        MaskCLIPError: the templates, the background or the model's name cannot be used.
    """
    if not names_clip(evaluation.model.name):
        return 0, 0
    words = vocabulary_under(evaluation.protocol, samples, evaluation.background).flat_prompts
    return len(set(words)), len(template_set(evaluation.model.templates))


def load_predictor(
    evaluation: Evaluation,
    samples: Samples,
    *,
    device: str = "auto",
    runtime: str = TORCH,
    why: str = "",
    count: int | None = None,
    on_word: OnWord | None = None,
) -> Predictor:
    """Load the model of an evaluation and give it the classes of the data set.

    Args:
        evaluation: what is evaluated.
        samples: the data set.
        device, runtime: as `load` takes them.
        why: of `settle_method`, to be stored.
        count: how many of the samples must have label maps of segments, if these vote; None is all.
        on_word: as `Segmenter.prepare` takes it.

    Raises:
        MaskCLIPError: the model cannot be loaded, or an option cannot be used.
    """
    evaluation, reason = settle_method(evaluation, samples)
    config, protocol = evaluation.model, evaluation.protocol
    vocabulary = vocabulary_under(protocol, samples, evaluation.background)
    voting, regions = Voting.of(evaluation.options), None
    if voting is not None:
        voting.require(samples.names[:count])
        regions = voting.fingerprint(samples.names[:count])
    if not names_clip(config.name):
        config, place = placed(config, device, runtime)
        evaluation = replace(evaluation, model=config)
        other = _load_without_clip(evaluation, samples, device=place, on_word=on_word)
        run_by(other.segmenter, runtime)
        return replace(other, voting=voting, regions=regions)
    named = get_method(config.method)
    options = options_under(protocol, evaluation.options, samples, named)
    method = method_under(protocol, named, samples.name)
    config = replace(config, method=method)
    segmenter = load(config, device=device, options=options, runtime=runtime)
    assert isinstance(segmenter, CLIPSegmenter)
    segmenter.why = why or reason
    # Refuses before any image is read.
    vocabulary = segmenter.prepare(vocabulary, options=options, on_word=on_word)
    return ZeroShotPredictor(
        segmenter, vocabulary, options, protocol, voting, regions, evaluation=evaluation
    )


def _load_without_clip(
    evaluation: Evaluation, samples: Samples, *, device: torch.device, on_word: OnWord | None
) -> StudentPredictor | PreviewPredictor | ExportedPredictor:
    """Load a student, the preview or an exported file, for the classes of the data set."""
    config, protocol = evaluation.model, evaluation.protocol
    if names_exported(config.name):
        return _load_exported(evaluation, samples, device=device)
    preview = config.name in PREVIEWS
    options = options_under(protocol, evaluation.options, samples, CLEAN)
    refuse_settings_of_clip(config, templates=default_templates(protocol))
    method = PUBLISHED if protocol == "published" and not preview else CLEAN
    if protocol != "segment":
        method = replace(method, upsample="maps", resizes=2)
    words = vocabulary_under("segment", samples, evaluation.background)
    if preview:
        segmenter = load_preview(
            config.name, method=method, device=device, precision=config.precision
        )
        words = segmenter.prepare(words, options=options)
        return PreviewPredictor(segmenter, words, options, protocol)
    student = load_student(
        Path(config.name),
        weights=config.weights,
        tokenizer=config.tokenizer,
        method=method,
        device=device,
        precision=config.precision,
    )
    try:
        own = student.prepare(
            words, background=evaluation.background, options=options, on_word=on_word
        )
    except MaskCLIPError as error:
        raise MaskCLIPError(f"{samples.name}: {error}") from None
    return StudentPredictor(student, own, options, protocol)


def _load_exported(
    evaluation: Evaluation, samples: Samples, *, device: torch.device
) -> ExportedPredictor:
    """Open an exported file, whose classes must be those of the data set."""
    config, protocol = evaluation.model, evaluation.protocol
    options = options_under(protocol, evaluation.options, samples, CLEAN)
    plain = replace(config, precision="float32")
    if config.templates == default_templates(protocol):
        plain = replace(plain, templates=ModelConfig(name=config.name).templates)
    segmenter = load_exported(plain, device=device)
    names, own = samples.vocabulary.names, segmenter.description.vocabulary
    if own.names != names:
        raise MaskCLIPError(
            f"{config.name}: its words are frozen, and its {len(own)} classes are not the "
            f"{len(names)} of {samples.name}: export the model with those"
        )
    if evaluation.background is not None:
        raise MaskCLIPError(f"{config.name}: its background is frozen: leave the background out")
    if protocol != "segment":
        segmenter.method = replace(segmenter.method, upsample="maps", resizes=2)
    words = segmenter.prepare(options=options)
    return ExportedPredictor(segmenter, words, options, protocol)
