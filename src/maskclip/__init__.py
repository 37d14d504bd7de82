"""maskclip: free dense labels from CLIP.

    >>> import maskclip
    >>> segmenter = maskclip.load("emoji")
    >>> segmentation = segmenter.segment("photo.jpg", ["dog", "grass"])

The public names are imported on first use, so that `import maskclip` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskclip.client import Client
    from maskclip.clip.encoder import DenseCLIP
    from maskclip.core.dense import Dense
    from maskclip.core.errors import MaskCLIPError
    from maskclip.core.method import Method
    from maskclip.core.segmentation import Segmentation
    from maskclip.core.vocabulary import Vocabulary
    from maskclip.tasks.photo_segmenter import EncodedPhoto
    from maskclip.tasks.segmenter import Segmenter, load

_HOMES = {
    "Client": "maskclip.client",
    "Dense": "maskclip.core.dense",
    "DenseCLIP": "maskclip.clip.encoder",
    "EncodedPhoto": "maskclip.tasks.photo_segmenter",
    "MaskCLIPError": "maskclip.core.errors",
    "Method": "maskclip.core.method",
    "Segmentation": "maskclip.core.segmentation",
    "Segmenter": "maskclip.tasks.segmenter",
    "Vocabulary": "maskclip.core.vocabulary",
    "load": "maskclip.tasks.segmenter",
}

__all__ = [
    "Client",
    "Dense",
    "DenseCLIP",
    "EncodedPhoto",
    "MaskCLIPError",
    "Method",
    "Segmentation",
    "Segmenter",
    "Vocabulary",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
