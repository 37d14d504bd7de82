"""Labelling configurations of Label Studio: which brushes there are, and their words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import brief
from maskclip.core.vocabulary import Vocabulary

OPTION = "maskclip_"
"""What attributes of a BrushLabels tag begin with that choose an option: `maskclip_method`."""
MOST_CHARACTERS = 1_000_000
"""Of a configuration."""
MOST_BRUSHES = 16
"""Of a configuration: every task is labelled once for each."""


@dataclass(frozen=True)
class Brush:
    """A BrushLabels tag, and the image that it paints on.

    Attributes:
        from_name, to_name: the names of the two tags.
        field: of a task's data, which has the image's address; with dots for values in values.
        labels: what results call each label -> the words that are looked for.
        options: what the tag chooses: `{"method": "clean"}`.
    """

    from_name: str
    to_name: str
    field: str
    labels: Mapping[str, tuple[str, ...]]
    options: Mapping[str, str]

    @property
    def vocabulary(self) -> Vocabulary:
        """The labels as classes.

        Raises:
            VocabularyError: two have the same words, or one is no word.
        """
        return Vocabulary.parse(self.labels)

    def image_of(self, data: object) -> str:
        """Return the address of the image in the data of a task.

        Raises:
            MaskCLIPError: there is none.
        """
        value = data
        for step in self.field.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        if not isinstance(value, str):
            raise MaskCLIPError(
                f"a task without an image: expected its address as {brief(self.field)}, got "
                f"{brief(value)}"
            )
        return value


def read_brushes(text: str) -> tuple[Brush, ...]:
    """Return the brushes of a labelling configuration.

    A label is called by its `alias`, if it has one, or else by its `value`, as Label Studio has
    it. Its words are its `predicted_values`, between commas; without these, they are its `value`,
    its `alias` and its `hint`, in which commas separate words too.

    Raises:
        MaskCLIPError: it is no XML, or has no BrushLabels with labels for an Image.
    """
    if len(text) > MOST_CHARACTERS:
        raise MaskCLIPError(
            f"the labelling configuration has {len(text):,} characters, and at most "
            f"{MOST_CHARACTERS:,} are read"
        )
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can grow without bounds
        raise MaskCLIPError("the labelling configuration declares a document type: leave it out")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise MaskCLIPError(f"the labelling configuration is no XML ({error})") from None
    images = {
        tag.get("name", ""): tag.get("value", "").removeprefix("$") for tag in _tags(root, "image")
    }
    tags = [tag for tag in _tags(root, "brushlabels") if images.get(tag.get("toName", ""))]
    if len(tags) > MOST_BRUSHES:
        raise MaskCLIPError(
            f"the labelling configuration has {len(tags):,} brushes, and at most {MOST_BRUSHES} "
            "are read"
        )
    found = tuple(_brush(tag, images[tag.get("toName", "")]) for tag in tags)
    if not found:
        raise MaskCLIPError(
            "the labelling configuration has no brush: expected <BrushLabels> whose toName is the "
            'name of an <Image value="$image">'
        )
    return found


def _tags(root: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (tag for tag in root.iter() if tag.tag.lower() == name)  # Label Studio takes any case


def _brush(tag: ElementTree.Element, field: str) -> Brush:
    labels = {}
    for label in _tags(tag, "label"):
        value, alias = label.get("value", "").strip(), label.get("alias", "").strip()
        if value or alias:
            labels[alias or value] = _words(label) or tuple(
                dict.fromkeys(word for word in (value, alias, *_split(label.get("hint"))) if word)
            )
    if not labels:
        raise MaskCLIPError(
            f"the brush {brief(tag.get('name'))} has no labels: expected <Label value=...> in it"
        )
    options = {
        name.removeprefix(OPTION): value
        for name, value in tag.attrib.items()
        if name.startswith(OPTION)
    }
    return Brush(tag.get("name", ""), tag.get("toName", ""), field, labels, options)


def _words(label: ElementTree.Element) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_split(label.get("predicted_values"))))


def _split(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]
