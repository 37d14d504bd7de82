"""The network of a student that starts from its teacher: its tower, and a decoder to stride 4.

The decoder adds to the teacher's features, enlarged to a quarter of the image: some of their mean,
so that what the image shows as a whole counts at every position, and what it makes of finer maps.
Both are nothing at first, so that an untrained student labels as its teacher does. B images, D
embedding channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.model import CLIPModel
from maskclip.clip.weights import build_tower
from maskclip.core.method import Method
from maskclip.core.methods import METHODS
from maskclip.imagenet.classifier import DenseClassifier, ImageClassifier, build_classifier
from maskclip.plus.config import TEACHER, StudentConfig, StudentError

STRIDE = 4
_WIDTH = 64  # channels of the decoder
_PROBE = 128  # px: two cells of the coarsest tower
_MEAN_RATE = 20.0  # the share of the mean is a single number, and learnt so many times as fast

Encoder = DenseCLIP | DenseClassifier


def config_from(
    source: CLIPModel | ImageClassifier,
    method: Method,
    classes: Sequence[int],
    *,
    embed_dim: int,
    background: bool,
) -> StudentConfig:
    """Return the architecture of a student that starts from a teacher.

    Args:
        source: the teacher's model.
        method: by which it is read.
        classes: the class of each of its rows, a background's left out.
        embed_dim: channels of its rows.
        background: whether a learnable background is class 0.

    Raises:
        StudentError: the tower, or the method, is not one that a student's file can describe.
    """
    if source.tower is None:
        raise StudentError(
            f"`student`: {source.name} has a tower that a student cannot start from yet: choose "
            "one of open_clip's own architectures as the teacher, or another student"
        )
    known = METHODS.get(method.name)
    if known is None or replace(method, temperature=known.temperature) != known:
        raise StudentError(
            f"`student`: a student that starts from its teacher is read by a built-in method, not "
            f"by {method.name!r}"
        )
    tower = dict(source.tower)
    if isinstance(source, CLIPModel):
        temperature = source.temperature if method.temperature is None else method.temperature
        tower |= {"mean": [*source.mean], "std": [*source.std], "temperature": temperature}
    counts = torch.bincount(torch.tensor(classes)).tolist()
    return StudentConfig(
        decoder=TEACHER,
        embed_dim=embed_dim,
        background=background,
        tower=tower,
        method=method.name,
        counts=tuple(counts) if max(counts) > 1 else (),
        trained_rows=isinstance(source, ImageClassifier),
    )


def build_encoder(config: StudentConfig) -> Encoder:
    """Build the tower that an architecture describes, of random weights.

    Raises:
        MaskCLIPError: the description is not of a tower, or the method cannot read it.
    """
    tower = dict(config.tower or {})
    if tower.get("family") == "timm":
        return DenseClassifier(build_classifier(tower))
    visual = build_tower(tower)
    try:
        statistics = {name: tower[name] for name in ("mean", "std", "temperature")}
    except KeyError as error:
        raise StudentError(f"tower: its {error.args[0]} is missing") from None
    return DenseCLIP(visual, method=METHODS[config.method], **statistics)


def encoder_of(source: CLIPModel | ImageClassifier, method: Method) -> Encoder:
    """Return the encoder of a teacher, whose weights a student starts from."""
    if isinstance(source, ImageClassifier):
        return DenseClassifier(source)
    return DenseCLIP.of(source, method=method)


class TowerBackbone(nn.Module):
    """A teacher's tower: pixels in, its features and what is finer out.

    Its BatchNorms use the statistics of its own training throughout: those of a few crops are too
    far from them for labels that are nearly right already (docs/results.md).
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def train(self, mode: bool = True) -> TowerBackbone:
        """Leave the tower as it labels; its weights are trained all the same."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor], Tensor, tuple[int, int]]:
        """Return the pixels, the maps of finer grids, the features, and what these cover in px.

        Args:
            pixels: (B, 3, H, W) in [0, 1]; the tower normalises them itself.
        """
        finer, dense = self.encoder.staged(pixels)
        features = dense.features
        if self.encoder.normalize:  # inner products are then the logits of the teacher
            features = self.encoder.temperature * F.normalize(features, dim=1)
        return pixels, finer, features, dense.covered


class Addition(nn.Module):
    """What is added to a teacher's features at stride 4: nothing, at first.

    Features are reduced together with their mean, and enlarged step by step by the maps of finer
    grids. Where a tower has none at stride 4, as ViTs, two convolutions see the pixels themselves.

    Args:
        finer: channels of the finer maps, the finest first.
        embed_dim: channels D of the features.
        from_pixels: whether the finest map is made of the pixels.
    """

    def __init__(self, finer: Sequence[int], *, embed_dim: int, from_pixels: bool) -> None:
        super().__init__()
        self.pixels = None
        if from_pixels:
            self.pixels = nn.Sequential(_conv(3, 32, stride=2), _conv(32, _WIDTH, stride=2))
            finer = [_WIDTH, *finer]
        self.mean = nn.Parameter(torch.zeros(1))
        self.reduce = nn.Conv2d(embed_dim, _WIDTH, 1)
        self.reduce_mean = nn.Conv2d(embed_dim, _WIDTH, 1, bias=False)
        self.join = nn.ModuleList(_conv(_WIDTH + channels, _WIDTH) for channels in finer)
        self.last = nn.Conv2d(_WIDTH, embed_dim, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(
        self, pixels: Tensor, finer: Sequence[Tensor], features: Tensor, covered: tuple[int, int]
    ) -> Tensor:
        """Return features (B, D, h, w) at stride 4, of what is covered."""
        coarse, fine = self._parts(pixels, finer, features, covered)
        added: Tensor = self.last(fine)
        return _resize(coarse, fine.shape[-2:]) + added

    def compare(
        self,
        pixels: Tensor,
        finer: Sequence[Tensor],
        features: Tensor,
        covered: tuple[int, int],
        *,
        rows: Tensor,
    ) -> Tensor:
        """Return the inner products (B, P, h, w) of these features with rows (P, D).

        Without the features, which are most of the work of a training step: both of their parts
        are compared where they are small.
        """
        coarse, fine = self._parts(pixels, finer, features, covered)
        with torch.autocast(features.device.type, enabled=False):
            seen = F.conv2d(coarse.float(), rows[:, :, None, None])
            last, bias = self.last.weight[:, :, 0, 0], self.last.bias
            assert bias is not None
            added = F.conv2d(fine.float(), (rows @ last)[:, :, None, None], rows @ bias)
            return _resize(seen, added.shape[-2:]) + added

    def _parts(
        self, pixels: Tensor, finer: Sequence[Tensor], features: Tensor, covered: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return features on the tower's grid, and what `last` is to make of stride 4."""
        if self.pixels is not None:
            bottom, right = (
                whole - side for whole, side in zip(covered, pixels.shape[-2:], strict=True)
            )
            finer = [self.pixels(F.pad(pixels - 0.5, (0, right, 0, bottom))), *finer]
        mean = features.mean(dim=(2, 3), keepdim=True)
        x = self.reduce(features) + self.reduce_mean(mean)
        for join, maps in zip(reversed(self.join), reversed(finer), strict=True):
            x = join(torch.cat([_resize(x, maps.shape[-2:]), maps], dim=1))
        size = [side // STRIDE for side in covered]
        return features + _MEAN_RATE * self.mean * mean, _resize(x, size)


def build_modules(config: StudentConfig) -> tuple[TowerBackbone, Addition]:
    """Build the tower and the decoder of an architecture.

    Raises:
        MaskCLIPError: there is no such tower, or it cannot be read by the method.
    """
    backbone = TowerBackbone(build_encoder(config))
    with torch.no_grad():
        finer, dense = backbone.eval().encoder.staged(torch.zeros(1, 3, _PROBE, _PROBE))
    backbone.train()
    if dense.features.shape[1] != config.embed_dim:
        raise StudentError(
            f"embed_dim: expected that of the tower, {dense.features.shape[1]}, got "
            f"{config.embed_dim}"
        )
    strides = [_PROBE // maps.shape[2] for maps in finer]
    decoder = Addition(
        [maps.shape[1] for maps in finer],
        embed_dim=config.embed_dim,
        from_pixels=not strides or min(strides) > STRIDE,
    )
    return backbone, decoder


def start_from(backbone: nn.Module, source: CLIPModel | ImageClassifier, method: Method) -> None:
    """Give the tower of a student, a `TowerBackbone`, the weights of its teacher's."""
    assert isinstance(backbone, TowerBackbone)
    backbone.encoder.load_state_dict(encoder_of(source, method).state_dict())


def _conv(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)
