"""What captions of the embedded world say, and which words of a caption are names."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from maskclip.emoji.layers import texture_names
from maskclip.emoji.sprites import COLORS, HELD_OUT_PAIRS, colored_pairs, object_names

PLAIN = "a photo of a {}."
SHORT = (
    *("{}", "{}.", "a {}", "the {}", "a photo of {}", "this is a {}.", "a picture of a {}"),
    *("there is a {} in the scene.", "a photo of a {} in the scene.", "an image of a {}."),
)
GROUND_WORDS = ("on", "with", "in front of", "and", "over", "by", "against")


@functools.cache
def templates() -> tuple[str, ...]:
    """Return every way a caption may be phrased, each with one `{}`: the usual CLIP prompts."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES  # scenes without captions need it not

    usual = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    return tuple(dict.fromkeys((PLAIN, *SHORT, *usual)))


def random_template(generator: np.random.Generator) -> str:
    """Draw a template: the plain one, a bare name, or any of them."""
    chance = generator.random()
    if chance < 0.25:
        return PLAIN
    if chance < 0.4:
        return "{}"
    return templates()[int(generator.integers(len(templates())))]


def write_caption(
    objects: Sequence[str], grounds: Sequence[str], generator: np.random.Generator
) -> str:
    """Write a caption that names things in a random order: `a photo of a dog and a car on grass.`

    `objects` and `grounds` are words such as "blue car"; both may be empty.
    """
    parts = [objects[i] for i in generator.permutation(len(objects))]
    phrase = " and ".join([*parts[:1], *map(_with_article, parts[1:])])
    for position, ground in enumerate(grounds):
        link = "and" if position else GROUND_WORDS[int(generator.integers(len(GROUND_WORDS)))]
        article = "the " if generator.random() < 0.25 else ""
        phrase = f"{phrase} {link} {article}{ground}" if phrase else ground
    return random_template(generator).format(phrase)


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def class_names() -> tuple[str, ...]:
    """Return the names of everything, objects first: the order of the vocabulary `emoji`."""
    return object_names() + texture_names()


def names_in(caption: str) -> frozenset[str]:
    """Return the class names that a caption mentions as whole words."""
    return frozenset(_names_pattern().findall(caption))


def trained_pairs() -> tuple[tuple[str, str], ...]:
    """Return the (colour, object) pairs that training may show and name."""
    return tuple(pair for pair in colored_pairs() if pair not in HELD_OUT_PAIRS)


def pairs_in(caption: str) -> frozenset[tuple[str, str]]:
    """Return the (colour, object) pairs that a caption mentions, such as `blue car`."""
    return frozenset(_pairs_pattern().findall(caption))


def every_word() -> Iterable[str]:
    """Yield texts that together hold every word a caption, a template or a class name can have."""
    for template in templates():
        yield template.format("thing")
    yield from ("a an the and this is of in there scene", *GROUND_WORDS, *COLORS, *class_names())


@functools.cache
def _names_pattern() -> re.Pattern[str]:
    return re.compile(rf"\b({'|'.join(class_names())})\b")


@functools.cache
def _pairs_pattern() -> re.Pattern[str]:
    things = dict.fromkeys(name for _, name in colored_pairs())
    return re.compile(rf"\b({'|'.join(COLORS)}) ({'|'.join(things)})\b")
