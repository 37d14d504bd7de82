"""What every segmenter does, whatever its network: encode photos, score them, or both at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from maskclip.clip.prompts import OnWord
from maskclip.core.cleaning import drop_unsure
from maskclip.core.config import (
    DEFAULT_OPTIONS,
    Options,
    OptionValues,
    RefinementValues,
    ViewValues,
    check_keywords,
)
from maskclip.core.dense import Dense, Scoring
from maskclip.core.errors import MaskCLIPError, did_you_mean
from maskclip.core.method import Method
from maskclip.core.segmentation import Segmentation
from maskclip.core.text import brief, check_kind
from maskclip.core.view import check_view
from maskclip.core.vocabulary import Background, Vocabulary
from maskclip.tasks.classes import Classes
from maskclip.tasks.photos import (
    Encode,
    Encoded,
    ImageSource,
    Network,
    Photo,
    PhotoMaps,
    encode_photos,
    of_each,
    read_maps,
    score_photo,
)
from maskclip.tasks.voting import Voting

ImageSources = (  # lists of one kind by name, for a list[str] is no list[ImageSource]
    list[str]
    | list[Path]
    | list[Image.Image]
    | list[npt.NDArray[np.uint8]]
    | list[ImageSource]
    | tuple[ImageSource, ...]
)


@dataclass(frozen=True, eq=False)
class EncodedPhoto:
    """A photo as a model sees it: `Segmenter.encode` returns it, `Segmenter.score` labels it.

    Attributes:
        photo: the photo, RGB.
        encoded: what the network sees in it, and where.
        model: which network has seen it, by which method: its `fingerprint` and `method`.
        path: of the photo; None of an image in memory.

    Examples:
        >>> encoded = maskclip.load("emoji").encode("photo.jpg")
        >>> encoded.photo.size, encoded.path
        ((256, 256), 'photo.jpg')
    """

    photo: Image.Image
    encoded: Encoded
    model: tuple[str, Method]
    path: str | None = None

    @property
    def dense(self) -> Dense:
        """What the network sees in the photo's n windows: features (n, D, h, w), and the rest.

        Examples:
            >>> encoded.dense.features.shape
            torch.Size([1, 192, 13, 13])
        """
        return self.encoded.dense


class Segmenter(ABC):
    """A model that labels the pixels of photos; `load` makes it.

    A CLIP takes any words. A trained student has classes of its own, and takes others where its
    CLIP is at hand.

    A segmenter cannot be pickled: where several processes label, each loads its own.

    Attributes:
        method: the arithmetic.
        why: why `method="auto"` became this method; "" where it was named.
        device: where the network computes.
        precision: in what it computes.
        fingerprint: a hash of the weights, 16 hex digits.
        short_side: the working size in px.
        refine: the refinements of maps where none are named.
        cell: the px between two positions of the grid.
        runtime: what runs the network: `"torch"`, `"onnx"` or `"openvino"`.
        runtime_why: why `runtime="auto"` became this one; "" where it was named.

    Examples:
        >>> segmenter = maskclip.load("emoji")
        >>> found = segmenter.segment("photo.jpg", ["dog", "balloon", "grass"])
        >>> list(found.coverage())
        ['grass', 'dog', 'balloon']
    """

    method: Method
    why: str = ""
    runtime: str = "torch"
    runtime_why: str = ""
    device: torch.device
    precision: torch.dtype
    fingerprint: str
    short_side: int
    refine: tuple[str, ...] = ()
    cell: int
    _encode_by: Encode | None = None

    @property
    def network(self) -> Network:
        """The image network, and how it sees photos."""
        return Network(
            encode=self._encode_by or self._encode,
            short_side=self.short_side,
            antialias=self.method.antialias,
            resizes=self.method.resizes,
            device=self.device,
        )

    def tokenizer_identity(self) -> str:
        """Return a hash of what makes tokens of its words; "" is CLIP's own tokenizer, or none.

        Raises:
            MaskCLIPError: its tokenizer is not to be had.
        """
        return ""

    @property
    def stretch(self) -> bool:
        """Whether the grid is stretched over what the network sees, or ends with whole cells."""
        return False

    def plain(self) -> tuple[nn.Module, Encode]:
        """Return the network in float32, not fitted to PyTorch, and what sees images by it.

        Raises:
            MaskCLIPError: the model has none.
        """
        raise MaskCLIPError("the network of this model has a runtime of its own")

    def encode_by(self, encode: Encode, runtime: str, *, why: str = "") -> None:
        """Let another runtime run the network, on the CPU."""
        self._encode_by, self.runtime, self.runtime_why = encode, runtime, why

    @abstractmethod
    def _encode(self, crops: Tensor, /, *, keys: bool, image: bool) -> Dense:
        """Encode crops (B, 3, h, w) uint8 of one shape, on the network's device."""

    @abstractmethod
    def prepare(
        self,
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        options: Options = DEFAULT_OPTIONS,
        on_word: OnWord | None = None,
    ) -> Vocabulary:
        """Encode words before the first photo, and refuse now what `segment` would refuse.

        Args:
            classes: as `segment` takes them.
            background: as `segment` takes it.
            options: those with which photos will be labelled.
            on_word: called after each word: how many are encoded, of how many that were not cached.

        Returns:
            The vocabulary that `segment` would use.

        Raises:
            MaskCLIPError: the classes or the options cannot be used.

        Examples:
            >>> segmenter.prepare(["dog", "grass"], background=0.6).names
            ('background', 'dog', 'grass')
        """

    def check_view(self, options: Options) -> None:
        """Refuse images and windows so small that nothing can be seen in them.

        Raises:
            MaskCLIPError: a side fills less than half of one position of the grid.
        """
        check_view(options, working_size=self.short_side, cell=self.cell)

    @abstractmethod
    def scoring(self, vocabulary: Vocabulary, options: Options) -> Scoring:
        """Return what dense features are compared with, for a vocabulary of `prepare`."""

    @abstractmethod
    def check_keys(self) -> None:
        """Refuse what needs keys, where the network has none.

        Raises:
            MaskCLIPError: it has none.
        """

    @abstractmethod
    def check_image(self) -> None:
        """Refuse what needs embeddings of whole images, where the network has none.

        Raises:
            MaskCLIPError: it has none.
        """

    @overload
    def encode(
        self,
        images: ImageSource,
        *,
        keys: bool = False,
        image: bool = False,
        **view: Unpack[ViewValues],
    ) -> EncodedPhoto: ...

    @overload
    def encode(
        self,
        images: ImageSources,
        *,
        keys: bool = False,
        image: bool = False,
        **view: Unpack[ViewValues],
    ) -> list[EncodedPhoto]: ...

    def encode(
        self,
        images: ImageSource | ImageSources,
        *,
        keys: bool = False,
        image: bool = False,
        **view: Unpack[ViewValues],
    ) -> EncodedPhoto | list[EncodedPhoto]:
        """Run the image network on one image, or on each image of a list, and keep what it sees.

        Args:
            images: as `segment` takes them.
            keys: also keep the keys, without which there is no key smoothing later.
            image: also keep the embeddings of the whole image, or window, without which there is
                no refinement `surgery` later.
            view: how images are cut: `short_side`, `long_side`, `window`, `stride`.

        Returns:
            What `score` takes, one or a list; it holds the features, on the network's device.

        Raises:
            MaskCLIPError: an image or an option cannot be used, or the model has no keys or no
                embeddings of whole images.

        Examples:
            >>> encoded = segmenter.encode("photo.jpg")
            >>> encoded.dense.features.shape  # one window, a grid of 13 x 13
            torch.Size([1, 192, 13, 13])
        """
        check_keywords(view, ViewValues, others=["keys", "image"])
        options = Options(**view)
        self.check_view(options)
        if keys:
            self.check_keys()
        if image:
            self.check_image()

        def run(photos: list[Photo], seen: list[Tensor]) -> list[EncodedPhoto]:
            sizes = [photo.size for photo in photos]
            encoded = encode_photos(seen, sizes, options, self.network, keys=keys, image=image)
            model = (self.fingerprint, self.method)
            pairs = zip(photos, encoded, strict=True)
            return [EncodedPhoto(one.image, found, model, one.path) for one, found in pairs]

        several = images if isinstance(images, list | tuple) else [images]
        found = of_each(several, options, self.network, run)
        return found if several is images else found[0]

    @overload
    def score(
        self,
        encoded: EncodedPhoto,
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        **refinement: Unpack[RefinementValues],
    ) -> Segmentation: ...

    @overload
    def score(
        self,
        encoded: list[EncodedPhoto] | tuple[EncodedPhoto, ...],
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        **refinement: Unpack[RefinementValues],
    ) -> list[Segmentation]: ...

    def score(
        self,
        encoded: EncodedPhoto | list[EncodedPhoto] | tuple[EncodedPhoto, ...],
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        **refinement: Unpack[RefinementValues],
    ) -> Segmentation | list[Segmentation]:
        """Label photos of `encode`; the image network does not run.

        Args:
            encoded: one or a list, of this model.
            classes: as `segment` takes them.
            background: as `segment` takes it.
            refinement: `key_smoothing`, `prompt_denoising`, `refine`, `refine_size`,
                `pamr_iterations`, `pamr_dilations`, `regions`, as `segment` takes them.

        Returns:
            A `Segmentation` at the photo's own size, or a list of them for a list.

        Raises:
            MaskCLIPError: a name or an option cannot be used, another model has encoded the
                photos, key smoothing lacks their keys, or surgery their own embeddings.

        Examples:
            >>> encoded = segmenter.encode("photo.jpg")
            >>> for words in (["dog", "grass"], ["balloon", "grass"]):
            ...     print(list(segmenter.score(encoded, words).coverage()))
            ['grass', 'dog']
            ['grass', 'balloon']
        """
        options = self._refinement(refinement)
        vocabulary = self.prepare(classes, background=background, options=options)
        scoring, voting = self.scoring(vocabulary, options), Voting.of(options)
        several = encoded if isinstance(encoded, list | tuple) else [encoded]
        self._check_encoded(several, scoring)
        with torch.inference_mode():
            found = [
                _segmentation(
                    score_photo(one.encoded, scoring),
                    vocabulary,
                    Photo(one.photo, one.path),
                    one.encoded.guide,
                    voting,
                )
                for one in several
            ]
        return found if several is encoded else found[0]

    def heat(
        self,
        encoded: EncodedPhoto,
        name: str,
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        **refinement: Unpack[RefinementValues],
    ) -> npt.NDArray[np.float32]:
        """Return the map of one class in a photo of `encode`: where its words fit, and how well.

        Probabilities are shared among all classes: a map shows a class beside the others.

        Args:
            encoded: of this model.
            name: of the class, as it is in the vocabulary (`"background"` is one, where there is).
            classes: as `score` takes them.
            background: as `score` takes it.
            refinement: as `score` takes it; segments have no vote.

        Returns:
            (H, W) float32, of the photo's own size: the values of which `Segmentation.scores` has
            the largest at each pixel.

        Raises:
            MaskCLIPError: as `score`, or no class is called so.

        Examples:
            >>> encoded = segmenter.encode("photo.jpg")
            >>> heat = segmenter.heat(encoded, "dog", ["dog", "balloon", "grass"])
            >>> heat.shape, heat.dtype, bool(heat.max() > heat[20, 20])
            ((256, 256), dtype('float32'), True)
        """
        options = self._refinement(refinement)
        vocabulary = self.prepare(classes, background=background, options=options)
        scoring = self.scoring(vocabulary, options)
        self._check_encoded([encoded], scoring)
        check_kind(name, str, "`name`: expected the name of a class")
        if name not in vocabulary.names:
            raise MaskCLIPError(
                f"`name`: no class {name!r}{did_you_mean(name, vocabulary.names)}; there are "
                f"{brief(list(vocabulary.names))}"
            )
        with torch.inference_mode():
            found = score_photo(encoded.encoded, scoring)
            return found.of(vocabulary.names.index(name))

    def _refinement(self, values: RefinementValues) -> Options:
        """Return the options of keywords; those of `refine` are the model's own by default."""
        check_keywords(values, RefinementValues, others=["background"])
        values.setdefault("refine", self.refine)
        return Options(**values)  # type: ignore[arg-type]  # a list of names will do

    def _check_encoded(self, encoded: Sequence[EncodedPhoto], scoring: Scoring) -> None:
        """Refuse what is no photo of `encode`, of another model, or lacks what is needed.

        Raises:
            MaskCLIPError: as `score`.
        """
        for one in encoded:
            if not isinstance(one, EncodedPhoto):
                raise MaskCLIPError(
                    "`encoded`: expected what `encode` returns, or a list of such, got "
                    f"{type(one).__name__}: encode images first, or use `segment`"
                )
            if one.model != (self.fingerprint, self.method):
                raise MaskCLIPError("another model, or method, has encoded the photo: encode again")
            if scoring.needs_keys and one.dense.keys is None:
                raise MaskCLIPError("key smoothing needs the photo's keys: encode with keys=True")
            if scoring.needs_image and one.dense.image is None:
                raise MaskCLIPError(
                    "the refinement surgery needs the embedding of the whole photo: encode with "
                    "image=True"
                )

    @overload
    def segment(
        self,
        images: ImageSource,
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        **options: Unpack[OptionValues],
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        images: ImageSources,
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        **options: Unpack[OptionValues],
    ) -> list[Segmentation]: ...

    def segment(
        self,
        images: ImageSource | ImageSources,
        classes: Classes | None = None,
        *,
        background: Background | None = None,
        **options: Unpack[OptionValues],
    ) -> Segmentation | list[Segmentation]:
        """Label every pixel of one image, or of each image of a list: `encode`, then `score`.

        Args:
            images: a path, a PIL image or a uint8 array (H, W, 3); or a list of them, of any sizes.
            classes: names (`"dog"`, or `"person=man,woman"` with synonyms), or a `Vocabulary`. A
                student has its own, which None is where its file carries them; other words are
                encoded by the text tower of its CLIP, and one of its own names is what it learnt.
            background: None; a threshold under which a pixel is background (clean: of the best
                probability, so above 1 / number of classes; published: of the best map value, in
                (-1, 1)); or words that are. Not for students that have learnt one.
            options: fields of `Options`: `key_smoothing`, `prompt_denoising`, `refine`,
                `refine_size`, `pamr_iterations`, `pamr_dilations`, `regions`, `short_side`,
                `long_side`, `window`, `stride`. The first two are not for students. Without
                `refine` it is the model's own: none, but for embedded ones.

        Returns:
            A `Segmentation` at the image's own size, or a list of them for a list. Pixels that
            score less than their class needs (`Vocabulary.confidence`) have the ignored label.

        Raises:
            MaskCLIPError: an image, a name or an option cannot be used.

        Examples:
            >>> found = segmenter.segment("photo.jpg", ["dog"], background=["grass", "sky"])
            >>> found.vocabulary.names, found.labels.shape
            (('background', 'dog'), (256, 256))

            Several photos, of any sizes, with options:

            >>> photos = ["a.jpg", "b.jpg"]
            >>> several = segmenter.segment(photos, ["dog", "cat"], refine="none")
            >>> [one.labels.shape for one in several]
            [(256, 256), (256, 256)]
        """
        check_keywords(options, OptionValues, others=["classes", "background"])
        options.setdefault("refine", self.refine)
        checked = Options(**options)  # type: ignore[arg-type]  # a list of names will do
        vocabulary = self.prepare(classes, background=background, options=checked)
        scoring, voting = self.scoring(vocabulary, checked), Voting.of(checked)

        def run(photos: list[Photo], seen: list[Tensor]) -> list[Segmentation]:
            maps = read_maps(seen, [photo.size for photo in photos], checked, self.network, scoring)
            return [
                _segmentation(found, vocabulary, photo, pixels, voting)
                for found, photo, pixels in zip(maps, photos, seen, strict=True)
            ]

        several = images if isinstance(images, list | tuple) else [images]
        found = of_each(several, checked, self.network, run)
        return found if several is images else found[0]


def _segmentation(
    found: PhotoMaps,
    vocabulary: Vocabulary,
    photo: Photo,
    seen: Tensor,
    voting: Voting | None,
) -> Segmentation:
    labels, scores = found.labels(vocabulary)
    if voting is not None:
        labels, scores = voting.vote(labels, scores, photo=photo.path, seen=seen)
    labels = drop_unsure(labels, scores, vocabulary)
    return Segmentation(labels, scores, vocabulary, photo.image)
