"""Models that are no CLIP, as segmenters: trained students, and the preview `photo`."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from maskclip.clip.prompts import OnWord
from maskclip.core.config import (
    DEFAULT_OPTIONS,
    PREVIEWS,
    ModelConfig,
    Options,
    check_options,
    own_refinement,
)
from maskclip.core.dense import Dense, Scoring
from maskclip.core.device import choose_precision
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.files import file_fingerprint
from maskclip.core.method import CLEAN, Method
from maskclip.core.methods import AUTO, get_method
from maskclip.core.vocabulary import BACKGROUND, Background, Vocabulary
from maskclip.export.graph import with_fixed_padding
from maskclip.imagenet.classifier import (
    SHORT_SIDE,
    DenseClassifier,
    ImageClassifier,
    load_classifier,
)
from maskclip.imagenet.words import ids_of
from maskclip.plus.files import TrainedStudent, read_student, student_file
from maskclip.plus.words import StudentWords
from maskclip.tasks.classes import Classes, as_vocabulary, useless, with_usable_confidence
from maskclip.tasks.photo_segmenter import Segmenter
from maskclip.tasks.photos import Encode


def load_preview(
    name: str, *, method: Method = CLEAN, device: torch.device, precision: str = "auto"
) -> PreviewSegmenter:
    """Load one of `PREVIEWS` as a segmenter.

    Raises:
        MaskCLIPError: its weights are not installed, or there is no such precision.
    """
    return PreviewSegmenter(
        load_classifier(name), method=method, device=device, precision=precision
    )


def load_student(
    path: Path,
    *,
    weights: str | None = None,
    tokenizer: str | None = None,
    method: Method = CLEAN,
    device: torch.device,
    precision: str = "auto",
) -> StudentSegmenter:
    """Read a student's file, or the run folder of a training, as a segmenter.

    `weights` and `tokenizer` are those of `StudentWords`.

    Raises:
        MaskCLIPError: the file cannot be used, or there is no such precision.
    """
    run, path = path, student_file(path)
    if run != path and path.suffix == ".ckpt":
        warnings.warn(
            f"{run} is a training that has not finished: its {path.name} is taken",
            MaskCLIPWarning,
            stacklevel=3,
        )
    return StudentSegmenter(
        read_student(path),
        name=str(path),
        fingerprint=file_fingerprint(path),
        weights=weights,
        tokenizer=tokenizer,
        method=method,
        device=device,
        precision=precision,
    )


class StudentSegmenter(Segmenter):
    """A student that labels pixels. Made by `load` from a student's file.

    Args:
        trained: the student; it is moved to the device.
        name: what messages and results call it.
        fingerprint: a hash of its file.
        weights, tokenizer: of the CLIP that gave its rows, as `StudentWords` takes them.
        method: how images are shrunk and logits enlarged; the rest of it is CLIP's.
        device, precision: as `load` takes them, the device chosen.
    """

    def __init__(
        self,
        trained: TrainedStudent,
        *,
        name: str,
        fingerprint: str,
        weights: str | None = None,
        tokenizer: str | None = None,
        method: Method,
        device: torch.device,
        precision: str,
    ) -> None:
        self.trained = trained
        self.name = name
        self.given = {"weights": weights, "tokenizer": tokenizer}
        self.fingerprint, self.short_side = fingerprint, trained.short_side
        self.method = method
        self.device = device
        self.student = trained.student.to(device).eval()
        self.cell = self.student.stride
        size = sum(weight.numel() for weight in self.student.parameters())
        self.precision = choose_precision(precision, device, parameters=size)
        self.words = StudentWords(trained, name=name, weights=weights, tokenizer=tokenizer)

    def prepare(
        self,
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        options: Options = DEFAULT_OPTIONS,
        on_word: OnWord | None = None,
    ) -> Vocabulary:
        """Return the vocabulary that `segment` would use; refuse now what it would refuse.

        `on_word` is that of `Segmenter.prepare`.

        Raises:
            MaskCLIPError: a word is new and cannot be encoded (`StudentWords`), or an option is one
                of CLIP's.
        """
        check_options(options)
        refuse_options_of_clip(
            self.name,
            key_smoothing=options.key_smoothing is not None,
            prompt_denoising=options.prompt_denoising is not None,
            surgery="surgery" in options.refine,
        )
        self.check_view(options)
        own, count = self.trained.vocabulary, len(self.trained)
        if own is None:
            return self._unnamed(classes, background)
        if background is not None and own.names[0] == BACKGROUND:
            raise MaskCLIPError(f"{self.name} has learnt a background: leave the background out")
        given = (own if classes is None else as_vocabulary(classes)).with_background(background)
        if given.threshold is not None and self.words.threshold(given) is None:
            given = given.with_background([BACKGROUND])  # which it knows by what it looks like
        given = with_usable_confidence(given, self.method)
        of_clip = [name for name, value in self.given.items() if value is not None]
        if of_clip and not self.words.new(given):
            raise MaskCLIPError(
                f"`{of_clip[0]}`: all of these are {self.name}'s own {count} classes, which need "
                "no CLIP: leave it out"
            )
        self.words.rows(given, on_word=on_word)
        warning = None if self.words.threshold(given) is None else useless(given, self.method)
        if warning is not None:
            warnings.warn(warning, MaskCLIPWarning, stacklevel=3)  # the caller of `segment`
        return given

    def _unnamed(self, classes: Classes | None, background: Background | None) -> Vocabulary:
        """Return the classes of a student that does not know their names."""
        count = len(self.trained)
        present = {name: value is not None for name, value in self.given.items()}
        refuse_options_of_clip(self.name, background=background is not None, **present)
        if classes is None:
            raise MaskCLIPError(
                f"{self.name} carries no class names: give its {count} classes in the order of "
                "its training, or put them into the file with `maskclip convert`"
            )
        given = with_usable_confidence(as_vocabulary(classes), self.method)
        if len(given) != count:
            raise MaskCLIPError(
                f"{self.name} tells {count} classes apart, not {len(given)}: give those that it "
                "was trained on, in their order, or put these into the file with `maskclip "
                "convert`, so that it knows others from them"
            )
        return given

    def untrained(self, vocabulary: Vocabulary) -> tuple[str, ...]:
        """Return the classes of a vocabulary that the student was not trained on."""
        return () if self.trained.vocabulary is None else self.words.new(vocabulary)

    def scoring(self, vocabulary: Vocabulary, options: Options) -> Scoring:
        """Return rows of the classes, whose inner products are logits without temperature."""
        if self.trained.vocabulary is None:
            (rows, classes), threshold = self.student.encoded_rows(), None
        else:
            rows, classes = self.words.rows(vocabulary)
            threshold = self.words.threshold(vocabulary)
        return Scoring(
            rows=rows,
            classes=classes,
            method=self.method,
            temperature=1.0,
            normalize=False,
            threshold=threshold,
            refine=options.refine,
            refine_size=options.refine_size,
            pamr_iterations=options.pamr_iterations,
            pamr_dilations=options.pamr_dilations,
        )

    def check_keys(self) -> None:
        """Refuse what needs keys: students have none."""
        refuse_options_of_clip(self.name, keys=True)

    def check_image(self) -> None:
        """Refuse what needs embeddings of whole images: students have none."""
        refuse_options_of_clip(self.name, image=True)

    @property
    def stretch(self) -> bool:
        """Whether the grid is stretched over what the network sees."""
        return True

    def plain(self) -> tuple[nn.Module, Encode]:
        """Return the student, and what sees images by it."""

        def encode(images: Tensor, /, *, keys: bool, image: bool) -> Dense:
            return Dense(student.encode(images), None, (images.shape[2], images.shape[3]))

        student = with_fixed_padding(self.student)
        return student, encode

    def _encode(self, crops: Tensor, /, *, keys: bool, image: bool) -> Dense:
        """Return features on the grid, which is stretched over the crops."""
        reduced = self.precision != torch.float32
        with torch.autocast(self.device.type, dtype=self.precision, enabled=reduced):
            features = self.student.encode(crops)
        return Dense(features.float(), None, (crops.shape[2], crops.shape[3]))


class PreviewSegmenter(Segmenter):
    """An image classifier that labels pixels with everyday words; made by `load("photo")`.

    Args:
        classifier: of `maskclip.imagenet`.
        method: how images are shrunk and maps enlarged; the rest of it is CLIP's.
        device, precision: as `load` takes them, the device chosen.
    """

    def __init__(
        self, classifier: ImageClassifier, *, method: Method, device: torch.device, precision: str
    ) -> None:
        self.classifier = classifier
        self.name = classifier.name
        self.fingerprint, self.short_side = classifier.fingerprint, SHORT_SIDE
        self.refine = own_refinement(classifier.name)
        self.method = method
        self.device = device
        self.encoder = DenseClassifier(classifier).to(device)
        size = sum(weight.numel() for weight in self.encoder.parameters())
        self.precision = choose_precision(precision, device, parameters=size)
        self.encoder.prepare(self.precision)
        self.cell = self.encoder.cell

    def prepare(
        self,
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        options: Options = DEFAULT_OPTIONS,
        on_word: OnWord | None = None,
    ) -> Vocabulary:
        """Return the vocabulary that `segment` would use; refuse now what it would refuse.

        Raises:
            MaskCLIPError: there are no classes, or words that ImageNet does not know.
        """
        check_options(options)
        if classes is None:
            raise MaskCLIPError(f"no classes: {self.name} labels with the words that it gets")
        self.check_view(options)
        vocabulary = as_vocabulary(classes).with_background(background)
        vocabulary = with_usable_confidence(vocabulary, self.method)
        ids_of([word for words in vocabulary.prompts for word in words], threshold=True)
        warning = useless(vocabulary, self.method)
        if warning is not None:
            warnings.warn(warning, MaskCLIPWarning, stacklevel=3)  # the caller of `segment`
        return vocabulary

    def scoring(self, vocabulary: Vocabulary, options: Options) -> Scoring:
        """Return the rows of all ImageNet classes that a vocabulary's words stand for."""
        first = 0 if vocabulary.threshold is None else 1
        rows, classes = self.classifier.word_rows(vocabulary.prompts[first:])
        return Scoring(
            rows=rows.to(self.device),
            classes=classes,
            method=self.method,
            temperature=1.0,
            normalize=False,
            prompt_denoising=options.prompt_denoising,
            key_smoothing=options.key_smoothing,
            threshold=vocabulary.threshold,
            refine=options.refine,
            refine_size=options.refine_size,
            pamr_iterations=options.pamr_iterations,
            pamr_dilations=options.pamr_dilations,
        )

    def check_keys(self) -> None:
        """Refuse nothing: key smoothing compares the features themselves."""

    def check_image(self) -> None:
        """Refuse nothing: the mean of an image's features is its embedding."""

    def plain(self) -> tuple[nn.Module, Encode]:
        """Return the classifier as it was read, and what sees images by it."""
        classifier = with_fixed_padding(DenseClassifier(self.classifier))
        return classifier, classifier.encode

    def _encode(self, crops: Tensor, /, *, keys: bool, image: bool) -> Dense:
        return self.encoder.encode(crops, keys=keys, image=image)


def refuse_options_of_clip(name: str, **given: bool) -> None:
    """Refuse what a model that is no CLIP has no use for.

    Args:
        name: the model, for the message.
        given: option -> whether it was given.

    Raises:
        MaskCLIPError: names the first that was.
    """
    for option, present in given.items():
        if present:
            kind = "a preview without CLIP" if name in PREVIEWS else "a trained student"
            raise MaskCLIPError(
                f"{option.replace('_', ' ')} belongs to CLIP, and {name} is {kind}: leave it out"
            )


def refuse_settings_of_clip(
    config: ModelConfig, *, templates: str = "published", **given: bool
) -> None:
    """Refuse settings of a model that is no CLIP which only a CLIP has.

    Args:
        config: the model.
        templates: those that nobody has chosen.
        given: further options, as `refuse_options_of_clip` takes them.

    Raises:
        MaskCLIPError: names the first that is set.
    """
    refuse_options_of_clip(
        config.name,
        weights=config.weights is not None and config.name in PREVIEWS,
        tokenizer=config.tokenizer is not None and config.name in PREVIEWS,
        language=config.language is not None,
        method=config.method == AUTO or get_method(config.method) != CLEAN,
        templates=config.templates != templates,
        proxy=config.proxy is not None,
        **given,
    )
