"""A finished labelling, opened to be looked at: its settings, classes and photos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from maskclip.core.cleaning import Cleaning
from maskclip.core.config import ModelConfig, Options
from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.corrections import LABELS
from maskclip.tasks.label import MANIFEST, LabelingError, Outcome
from maskclip.tasks.label.manifest import Manifest
from maskclip.tasks.label.statistics import by_worth


@dataclass(frozen=True)
class LabeledPhoto:
    """A photo with labels.

    Attributes:
        outcome: its size and classes.
        reasons: why it is worth a look: the label of a class, and what is odd about it.
        doubt: how unsure its labels are, as `tasks.label.statistics.doubt` has it.
        bytes: of its file when it was labelled; None where that is not known.
    """

    outcome: Outcome
    reasons: tuple[tuple[int, str], ...]
    doubt: float
    bytes: int | None = None

    def change(self) -> str:
        """Return what became of its file since it was labelled; "" if it has the same size.

        Its time is not compared, for copies of folders often have others.
        """
        try:
            found = self.outcome.task.path.stat().st_size
        except OSError:
            return "the photo is missing"
        same = self.bytes in (None, found)
        return "" if same else "the photo has changed since it was labelled"

    @property
    def name(self) -> str:
        """The name of its results."""
        return self.outcome.task.name

    @property
    def size(self) -> tuple[int, int]:
        """Its width and height in px."""
        return self.outcome.width, self.outcome.height


@dataclass(frozen=True, eq=False)
class FinishedLabels:
    """What `label` has left in a folder.

    Attributes:
        out: the folder.
        settings: of the labelling, plain values, which need not be trusted.
        vocabulary: the classes.
        photos: those that are done, most worth a look first.
    """

    out: Path
    settings: Mapping[str, Any]
    vocabulary: Vocabulary
    photos: tuple[LabeledPhoto, ...]

    @cached_property
    def by_name(self) -> Mapping[str, LabeledPhoto]:
        """The photos by the names of their results."""
        return {photo.name: photo for photo in self.photos}

    def model(
        self,
        *,
        name: str | None = None,
        weights: str | None = None,
        method_file: str | None = None,
        tokenizer: str | None = None,
    ) -> ModelConfig:
        """Return the model that labelled; the arguments say where its files lie now.

        Raises:
            LabelingError: the settings are damaged, or of a method whose file is not named.
        """
        given = self.settings
        how = method_file or given.get("method")
        if not isinstance(how, str):
            raise LabelingError(
                f"{self.out} was labelled by a method of your own: give its file as `method_file`"
            )
        try:
            return ModelConfig(
                name=name or given["model"],
                weights=weights,
                method=how,
                templates=given["templates"],
                precision=given["precision"],
                proxy=given["proxy"],
                tokenizer=tokenizer,
                language=given.get("language"),
            )
        except (KeyError, TypeError) as error:
            raise self._damaged(error) from None

    @property
    def options(self) -> Options:
        """How photos were cut, and maps refined.

        Raises:
            MaskCLIPError: the settings are damaged.
        """
        try:
            return Options(**self.settings["options"])
        except (KeyError, TypeError) as error:
            raise self._damaged(error) from None

    @property
    def cleaning(self) -> Cleaning:
        """Which labels were dropped.

        Raises:
            MaskCLIPError: the settings are damaged.
        """
        try:
            return Cleaning(**self.settings["cleaning"])
        except (KeyError, TypeError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> LabelingError:
        return _damaged(self.out / MANIFEST, error)


def open_labels(out: Path) -> FinishedLabels:
    """Open the folder of a labelling.

    Raises:
        LabelingError: it is none, has no labels as `png`, or is being written.
        MaskCLIPError: its record is damaged.
    """
    path = out / MANIFEST
    if not path.is_file():
        raise LabelingError(f"{out} is no folder of `maskclip label`: {MANIFEST} is missing in it")
    with Manifest.copy_of(path) as manifest:
        settings = manifest.settings()
        try:
            vocabulary = Vocabulary.from_dict(settings["vocabulary"])
            formats = list(settings["formats"])
        except (KeyError, TypeError, MaskCLIPError) as error:
            raise _damaged(path, error) from None
        if LABELS not in formats:
            raise LabelingError(
                f"{out} has its labels as {', '.join(map(str, formats))}: the format {LABELS} is "
                "needed; name it when you label"
            )
        outcomes, sizes = list(manifest.outcomes()), manifest.sizes()
    beyond = [s.label for o in outcomes for s in o.classes if not 0 <= s.label < len(vocabulary)]
    if beyond:
        raise _damaged(path, ValueError(f"a class {beyond[0]} of {len(vocabulary)}"))
    photos = tuple(
        LabeledPhoto(
            outcome,
            tuple((flag.label, flag.reason) for flag in flags),
            doubt,
            sizes.get(outcome.task.name),
        )
        for outcome, flags, doubt in by_worth(lambda: iter(outcomes), vocabulary)
    )
    if not photos:
        raise LabelingError(f"{out} has no labelled photo yet: label some first")
    return FinishedLabels(out, settings, vocabulary, photos)


def _damaged(path: Path, error: Exception) -> LabelingError:
    return LabelingError(f"{path}: the record of the settings is damaged ({error})")
