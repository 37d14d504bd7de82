"""The preview `photo` as a segmenter: words that ImageNet knows, on photographs, without CLIP."""

from __future__ import annotations

import torch
from torch import Tensor

from maskclip.core.config import DEFAULT_OPTIONS, Options, own_refinement
from maskclip.core.dense import Dense, Scoring
from maskclip.core.device import choose_precision
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import Method
from maskclip.core.vocabulary import Background, Vocabulary
from maskclip.imagenet.classifier import SHORT_SIDE, DenseClassifier, ImageClassifier
from maskclip.imagenet.words import ids_of
from maskclip.tasks.photo_segmenter import Classes, PhotoSegmenter, as_vocabulary


class PreviewSegmenter(PhotoSegmenter):
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
    ) -> Vocabulary:
        """Return the vocabulary that `segment` would use; refuse now what it would refuse.

        Raises:
            MaskCLIPError: there are no classes, or words that ImageNet does not know.
        """
        if classes is None:
            raise MaskCLIPError(f"no classes: {self.name} labels with the words that it gets")
        self.check_view(options)
        vocabulary = as_vocabulary(classes).with_background(background)
        ids_of([word for words in vocabulary.prompts for word in words])
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

    def _encode(self, crops: Tensor, /, *, keys: bool, image: bool) -> Dense:
        return self.encoder.encode(crops, keys=keys, image=image)
