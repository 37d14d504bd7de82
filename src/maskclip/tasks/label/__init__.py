"""Photos in, label files out: what `segment` and `label` work on, and what they report.

`worker` labels photos; `segment` needs no more. For `label` a `manifest` records what is done,
`backends` run workers elsewhere, `pipeline` puts it together, and `report` shows the outcome.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from maskclip.core.cleaning import Cleaning
from maskclip.core.config import DEFAULT_OPTIONS, ModelConfig, Options, check_runtime
from maskclip.core.errors import MaskCLIPError
from maskclip.core.methods import AUTO, get_method
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats import (
    DEFAULT_FORMAT_OPTIONS,
    Format,
    FormatOptions,
    find_format,
    open_formats,
)
from maskclip.data.formats.per_photo import Thumbnails
from maskclip.data.images import MAX_PIXELS

MANIFEST = "manifest.sqlite"
"""The record of what is done, in the folder of a labelling."""

THUMBNAILS = "thumbnails"
"""The folder of small pictures, which the report shows."""


class LabelingError(MaskCLIPError):
    """A labelling that cannot go on, or does not fit what was done before."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that decides the files of a labelling, except the photos; it can be sent to processes.

    Attributes:
        model: which model, read how.
        vocabulary: the classes; None for a student that carries its own.
        out: the folder of the results.
        options: how images are cut and maps refined, the refinement that an embedded model has of
            its own (`core.config.own_refinement`) included.
        cleaning: which labels are dropped.
        formats: names of `data.formats.FORMATS`, or of `FLAT_FORMATS`.
        format_options: what users choose of single formats; other choices need no new labels.
        flat: whether all files go into `out` itself, as `segment` writes them; else each format has
            a folder, and thumbnails are written.
        max_pixels: larger images are refused.
        runtime: what runs the network, as `load` takes it.

    Raises:
        MaskCLIPError: there is no such runtime, no class that a confidence names, or the method
            gives no probabilities, and a format needs them.
    """

    model: ModelConfig
    vocabulary: Vocabulary | None
    out: Path
    options: Options = DEFAULT_OPTIONS
    cleaning: Cleaning = field(default_factory=Cleaning)
    formats: tuple[str, ...] = ("png",)
    format_options: FormatOptions = DEFAULT_FORMAT_OPTIONS
    flat: bool = False
    max_pixels: int = MAX_PIXELS
    runtime: str = "torch"

    def __post_init__(self) -> None:
        check_runtime(self.runtime)
        if self.vocabulary is not None:
            self.cleaning.thresholds(self.vocabulary)  # refuses unknown classes
        if self.model.method == AUTO:  # which is never one of those
            return
        method = get_method(self.model.method)
        if method.upsample == "probabilities" and method.resizes == 1:
            return
        for name in self.formats:
            if find_format(name).wants_probabilities:
                raise MaskCLIPError(
                    f"the format {name} needs probabilities, and the method {method.name} gives "
                    "none: leave the format out, or take the method clean"
                )

    def open_formats(self, vocabulary: Vocabulary) -> list[Format]:
        """Return what writes the files, for the classes that the model has found.

        Raises:
            MaskCLIPError: a format cannot hold the vocabulary.
        """
        opened = open_formats(
            self.formats, vocabulary, self.out, flat=self.flat, options=self.format_options
        )
        if self.flat:
            return opened
        return [*opened, Thumbnails(vocabulary, self.out / THUMBNAILS)]


@dataclass(frozen=True)
class Task:
    """A photo to be labelled.

    Attributes:
        number: in the set.
        path: of the image.
        relative_path: in the tree that it was found in, POSIX.
        name: of its results, a relative POSIX path without suffix.
    """

    number: int
    path: Path
    relative_path: str
    name: str


Chunk = tuple[Task, ...]
"""Photos that are labelled together."""


@dataclass(frozen=True)
class ClassStats:
    """A class in a photo.

    Attributes:
        label: the class id.
        pixels: how many pixels it won.
        kept: how many of them keep it after cleaning.
        score: the mean score of the pixels that it won.
    """

    label: int
    pixels: int
    kept: int
    score: float


@dataclass(frozen=True)
class Outcome:
    """What became of a photo.

    Attributes:
        task: the photo.
        width, height: its size in px; 0 if it failed.
        classes: those that won pixels.
        error: why it failed, in one line; None if it did not.
        fatal: whether the reason would stop other photos too, as a full disk does.
    """

    task: Task
    width: int = 0
    height: int = 0
    classes: tuple[ClassStats, ...] = ()
    error: str | None = None
    fatal: bool = False
