"""maskclip: dense labels from CLIP. Words and photos in, a label for every pixel out.

Examples:
    >>> import maskclip
    >>> segmenter = maskclip.load("emoji")
    >>> found = segmenter.segment("photo.jpg", ["dog", "balloon", "grass"])
    >>> found.labels.shape, found.labels.dtype
    ((256, 256), dtype('uint8'))
    >>> list(found.coverage())  # what covers most comes first
    ['grass', 'dog', 'balloon']

What `__all__` names is public (docs/versions.md). These names are imported on first use, so that
`import maskclip` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskclip.client import Answer, AnswerClass, Client
    from maskclip.clip.encoder import DenseCLIP
    from maskclip.core.config import ModelConfig, Options
    from maskclip.core.dense import Dense
    from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
    from maskclip.core.method import Method
    from maskclip.core.methods import METHODS
    from maskclip.core.segmentation import Segmentation
    from maskclip.core.vocabulary import Vocabulary
    from maskclip.tasks.photo_segmenter import EncodedPhoto, Segmenter
    from maskclip.tasks.segmenter import load

    __version__: str

_HOMES = {
    "METHODS": "maskclip.core.methods",
    "Answer": "maskclip.client",
    "AnswerClass": "maskclip.client",
    "Client": "maskclip.client",
    "Dense": "maskclip.core.dense",
    "DenseCLIP": "maskclip.clip.encoder",
    "EncodedPhoto": "maskclip.tasks.photo_segmenter",
    "MaskCLIPError": "maskclip.core.errors",
    "MaskCLIPWarning": "maskclip.core.errors",
    "Method": "maskclip.core.method",
    "ModelConfig": "maskclip.core.config",
    "Options": "maskclip.core.config",
    "Segmentation": "maskclip.core.segmentation",
    "Segmenter": "maskclip.tasks.photo_segmenter",
    "Vocabulary": "maskclip.core.vocabulary",
    "load": "maskclip.tasks.segmenter",
}

__all__ = [
    "METHODS",
    "Answer",
    "AnswerClass",
    "Client",
    "Dense",
    "DenseCLIP",
    "EncodedPhoto",
    "MaskCLIPError",
    "MaskCLIPWarning",
    "Method",
    "ModelConfig",
    "Options",
    "Segmentation",
    "Segmenter",
    "Vocabulary",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    special = (name for name in globals() if name.startswith("__"))
    return sorted({*__all__, *special, "__version__"})
