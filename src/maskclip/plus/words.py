"""The words of a student: its own by the rows in its file, others by the text tower of its CLIP.

P rows, K classes, D embedding channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip.clip.model import CLIPModel
from maskclip.clip.prompts import (
    MEMORY_BYTES,
    OnWord,
    RecentlyUsed,
    mean_rows,
    never_saw,
    text_rows,
)
from maskclip.clip.weights import load_clip
from maskclip.core.config import ALIASES, EMBEDDED, PREVIEWS
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.text import brief
from maskclip.core.vocabulary import Vocabulary
from maskclip.plus.config import StudentError
from maskclip.plus.files import TrainedStudent

_COMPARED = 4  # classes: the authors spell some otherwise than the built-in class sets do
_SAME = 0.999  # cosine of rows of one text tower, in whatever precision; other templates have less
_NAMED = 6  # classes that a message lists

_EMBEDDED = {*EMBEDDED, *ALIASES}

Rows = tuple[Tensor, tuple[int, ...]]


def takes_words(trained: TrainedStudent) -> bool:
    """Return whether a student may be given words.

    One that knows no names of its classes needs them. Others take new words where their rows are
    of the words of a CLIP whose name is known, which encodes others too.
    """
    named, clip = trained.vocabulary is not None, trained.clip
    of_words = clip is not None and clip not in PREVIEWS
    return not named or (of_words and not trained.student.config.trained_rows)


class StudentWords:
    """What a student compares features with, for words of its own and for others.

    A class that is named as one of its training keeps the row of its training, and needs no CLIP.
    Other words are put into prompts and encoded as those of its training were: its features were
    taught to lie where that CLIP's words do.

    Args:
        trained: the student.
        name: what messages call it.
        weights: the CLIP that gave its rows, by name or as a file, where that of its training
            cannot be had by its name; None takes this one.
        tokenizer: a folder of that CLIP's tokenizer, as `load_clip` takes it.
    """

    def __init__(
        self,
        trained: TrainedStudent,
        *,
        name: str,
        weights: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        self.trained = trained
        self.name = name
        self.weights = weights
        self._load = partial(load_clip, tokenizer=tokenizer, language=trained.language)
        self._made: RecentlyUsed[Vocabulary, Tensor] = RecentlyUsed(MEMORY_BYTES)

    def new(self, vocabulary: Vocabulary) -> tuple[str, ...]:
        """Return the classes of a vocabulary that the student was not trained on."""
        own = self._own.names
        return tuple(name for name in self._of_rows(vocabulary) if name not in own)

    def threshold(self, vocabulary: Vocabulary) -> float | None:
        """Return under which probability a pixel is background; None where the student knows it."""
        return None if vocabulary.names[0] in self._own.names else vocabulary.threshold

    def rows(self, vocabulary: Vocabulary, *, on_word: OnWord | None = None) -> Rows:
        """Return the rows (P, D) of a vocabulary, and of which class each is.

        A background by `threshold` has none, and is not counted.

        Args:
            vocabulary: the classes, of a student that knows the names of its own.
            on_word: is called for the words that are encoded, as `clip.prompts.text_rows` does.

        Raises:
            MaskCLIPError: a word is new, and the student can learn no others, or its CLIP cannot be
                had, is another one, or cannot read the word.
        """
        names = self._of_rows(vocabulary)
        mine, of_class = self.trained.student.encoded_rows()
        made = self._encode(vocabulary, on_word=on_word).to(mine)
        parts, classes, others = [], [], iter(made)
        for index, name in enumerate(names):
            if name in self._own.names:
                own = self._own.names.index(name)
                part = mine[[row for row, of in enumerate(of_class) if of == own]]
            else:
                part = next(others)[None]
            parts.append(part)
            classes += [index] * len(part)
        return torch.cat(parts), tuple(classes)

    def _of_rows(self, vocabulary: Vocabulary) -> tuple[str, ...]:
        return vocabulary.names[0 if self.threshold(vocabulary) is None else 1 :]

    @property
    def _own(self) -> Vocabulary:
        own = self.trained.vocabulary
        assert own is not None
        return own

    def _encode(self, vocabulary: Vocabulary, *, on_word: OnWord | None) -> Tensor:
        """Return one row for each of the new classes."""
        new = self.new(vocabulary)
        if not new:
            return torch.zeros(0)
        rows = self._made.get(vocabulary)
        if rows is None:
            self._check_may(new)
            words = dict(zip(vocabulary.names, vocabulary.prompts, strict=True))
            prompts = [words[name] for name in new]
            rows = self._rows_by(self._clip, prompts, on_word=on_word)
            self._made.put(vocabulary, rows, rows.nbytes)
        return rows

    def _check_may(self, new: Sequence[str]) -> None:
        trained, preview = self.trained, self.trained.clip in PREVIEWS
        if preview or trained.student.config.trained_rows:
            why = f"{trained.clip} taught it, which is no CLIP" if preview else "they were trained"
            raise StudentError(
                f"{self.name} has rows for its own {len(trained)} classes alone, as {why}, and "
                f"none for {_listed(new)}: it knows {_listed(self._own.names)}; for other words "
                "take a CLIP, or a student of one"
            )

    def _rows_by(
        self, clip: CLIPModel, prompts: Sequence[Sequence[str]], *, on_word: OnWord | None = None
    ) -> Tensor:
        """Return one row a class, as a training makes them."""
        rows, unknown = text_rows(
            clip,
            [name for names in prompts for name in names],
            templates=self.trained.templates,
            device=self.trained.student.rows.device,
            on_word=on_word,
        )
        if unknown:
            warnings.warn(never_saw(clip, unknown), MaskCLIPWarning, stacklevel=2)
        return mean_rows(rows, [len(names) for names in prompts])

    @cached_property
    def _clip(self) -> CLIPModel:
        """The CLIP whose text rows the student has, found and compared with them.

        Raises:
            MaskCLIPError: it cannot be had, or it is another one.
        """
        clip = self._find()
        self._compare(clip)
        return clip

    def _find(self) -> CLIPModel:
        known, given = self.trained.clip, self.weights
        if given is not None:
            file = given == "random" or Path(given).is_file()
            if known is None or not file or known in _EMBEDDED or Path(known).suffix:
                return self._load(given)
            return self._load(known, weights=given)
        needed = f"new words need the text tower of the CLIP that gave {self.name} its own rows"
        if known is None:
            raise StudentError(
                f"{needed}, and its file does not name it: give its name or file as `weights`"
            )
        try:
            return self._load(known)
        except MaskCLIPError as error:
            raise StudentError(
                f"{needed}, {known}: {error}. Its own words need none; for others give its file as "
                "`weights`"
            ) from error

    def _compare(self, clip: CLIPModel) -> None:
        """Refuse a CLIP whose rows for words of the training are not those of the student.

        Rows are compared, and not hashes of weights: these differ between files of one CLIP.
        """
        student, own = self.trained.student, self._own
        first = int(student.config.background)
        known = [(len(own.prompts[i]), i) for i in range(first, len(own)) if own.prompts[i]]
        chosen = [index for _, index in sorted(known)[:_COMPARED]]
        theirs = self._rows_by(clip, [own.prompts[index] for index in chosen])
        ours = student.classifier().detach()[[student.classes.index(index) for index in chosen]]
        if theirs.shape[1] != ours.shape[1]:
            raise StudentError(
                f"{clip.name} is not the CLIP that gave {self.name} its rows: its words have "
                f"{theirs.shape[1]} channels, and these have {ours.shape[1]}"
            )
        likeness, at = F.cosine_similarity(theirs, ours.to(theirs)).max(dim=0)
        if likeness < _SAME:
            raise StudentError(
                f"{clip.name} is not the CLIP that gave {self.name} its rows: for "
                f"{brief(own.names[chosen[int(at)]])} theirs are alike to {float(likeness):.2f}, "
                "not 1; give the name or the file of the right one as `weights`"
            )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
