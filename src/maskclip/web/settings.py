"""What a request chooses, as it is written in JSON and in forms; what of it becomes a question."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from maskclip.core.class_lists import read_background, split_words
from maskclip.core.config import BY_PHOTO, Options, own_refinement, read_refinements
from maskclip.core.errors import MaskCLIPError, did_you_mean
from maskclip.core.methods import AUTO, METHODS
from maskclip.core.regions import SLIC
from maskclip.core.text import brief
from maskclip.core.vocabulary import Vocabulary, builtin_names
from maskclip.tasks.voting import Voting
from maskclip.web.errors import Values, no_boolean
from maskclip.web.models import Models

MOST_CHARACTERS = 20_000
"""Of the words of a request."""
MOST_WORDS = 300
"""Prompts that a request brings along; built-in vocabularies may have more."""
LONGEST_SIDE = 2048
"""Of the short side, in px, that a request may choose."""


def _or_none(value: Any) -> Any:
    """Take an empty field of a form as one that is left out."""
    return None if isinstance(value, str) and not value.strip() else value


Text = Annotated[str | None, BeforeValidator(_or_none)]
Number = Annotated[float, BeforeValidator(no_boolean("float_type")), Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(no_boolean("int_type"))]
Share = Annotated[Number | None, BeforeValidator(_or_none)]
Pixels = Annotated[Whole | None, BeforeValidator(_or_none)]


class Settings(Values):
    """Words and options: the same in JSON and in forms, named as in Python."""

    words: Text = Field(
        None,
        description="Classes between commas: `dog, car, cat`. A class with synonyms ends at a "
        "semicolon or a new line: `person=man,woman; dog`.",
    )
    vocabulary: Text = Field(None, description="A built-in set of classes, instead of words.")
    background: Text = Field(
        None, description="`none`, a threshold such as `0.5`, or words: `sky, wall`."
    )
    model: Text = Field(None, description="A name of `/v1/models`; the first by default.")
    method: Text = Field(None, description="How CLIP is read: `clean` by default, or `auto`.")
    refine: Text = Field(
        None, description="Refinements: `pamr`, `tlp+pamr`, or `none`; the model's own by default."
    )
    key_smoothing: Share = Field(None, description="A threshold from 0 to 1; the paper's is 1.")
    prompt_denoising: Share = Field(
        None, description="A threshold from 0 to 1; the paper's is 0.5."
    )
    regions: Text = Field(None, description="`slic`: the pixels of superpixels vote.")
    short_side: Pixels = Field(None, description="To which photos are resized, in px.")
    window: Pixels = Field(None, description="Side of sliding windows, in px.")
    stride: Pixels = Field(None, description="Step of the windows, in px.")


@dataclass(frozen=True)
class Choice:
    """What a request has chosen, checked.

    Attributes:
        model, method: by name.
        vocabulary: the classes, with their background; None for a student's own.
        options: how the photo is cut, and its maps refined.
    """

    model: str
    method: str
    vocabulary: Vocabulary | None
    options: Options

    def draft(self) -> Choice:
        """Return the same without what the photo does to maps and labels, which is quick."""
        refine = tuple(name for name in self.options.refine if name not in BY_PHOTO)
        return replace(self, options=replace(self.options, refine=refine, regions=None))


def read_settings(given: Settings, models: Models, *, classes: Vocabulary | None = None) -> Choice:
    """Return what a request has chosen.

    Args:
        given: what it says.
        models: those that are offered.
        classes: what is looked for, where it is not in `given`; None for a student's own.

    Raises:
        MaskCLIPError: a name is unknown, a value out of its range, or there are no words.
    """
    offered = models.find(given.model)
    method = given.method or "clean"
    if method != AUTO and method not in METHODS:  # no file: whoever calls is a stranger
        raise MaskCLIPError(
            f"no method {brief(method)}{did_you_mean(method, METHODS)}: expected {AUTO} or one of "
            f"{', '.join(METHODS)}"
        )
    if given.regions not in (None, SLIC):
        raise MaskCLIPError(f"`regions`: expected {SLIC}, got {brief(given.regions)}")
    if given.short_side is not None and not 1 <= given.short_side <= LONGEST_SIDE:
        raise MaskCLIPError(
            f"`short_side` is a number of pixels from 1 to {LONGEST_SIDE:,}, got "
            f"{brief(given.short_side)}"
        )
    options = Options(
        key_smoothing=given.key_smoothing,
        prompt_denoising=given.prompt_denoising,
        refine=own_refinement(offered.source)
        if given.refine is None
        else read_refinements(given.refine),
        regions=given.regions,
        short_side=given.short_side,
        window=given.window,
        stride=given.stride,
    )
    Voting.of(options)
    vocabulary = _vocabulary(given, classes, needs_words=offered.needs_words)
    return Choice(offered.name, method, vocabulary, options)


def _vocabulary(
    given: Settings, classes: Vocabulary | None, *, needs_words: bool
) -> Vocabulary | None:
    for name, text in (("words", given.words), ("background", given.background)):
        if text is not None and len(text) > MOST_CHARACTERS:
            raise MaskCLIPError(
                f"`{name}`: {len(text):,} characters, and at most {MOST_CHARACTERS:,} are read"
            )
    rule = read_background(given.background)
    if given.words is not None and given.vocabulary is not None:
        raise MaskCLIPError("give `words` or a `vocabulary`, not both")
    if given.vocabulary is not None:
        return Vocabulary.builtin(given.vocabulary).with_background(rule)
    if given.words is not None:
        classes = Vocabulary.parse(split_words(given.words))
    if classes is not None:
        found = classes.with_background(rule)
        if len(found.flat_prompts) > MOST_WORDS:
            raise MaskCLIPError(
                f"{len(found.flat_prompts):,} words, and at most {MOST_WORDS} are taken at once"
            )
        return found
    if needs_words:
        raise MaskCLIPError(
            "no words: give `words`, such as dog, car, cat, or a `vocabulary`: "
            f"{', '.join(builtin_names())}"
        )
    if rule is not None:
        raise MaskCLIPError(
            "`background` goes with words: give those that the student is to look for, too"
        )
    return None
