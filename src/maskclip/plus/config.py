"""Which student: a published architecture, or any decoder over any backbone, by name."""

from __future__ import annotations

from dataclasses import dataclass

from maskclip.core.errors import MaskCLIPError, did_you_mean

PUBLISHED_DECODERS = ("deeplabv2", "deeplabv3plus")
DEPTHS = (50, 101)
PUBLISHED_NAMES = tuple(f"{decoder}-r{depth}" for decoder in PUBLISHED_DECODERS for depth in DEPTHS)


class StudentError(MaskCLIPError):
    """A student cannot be built as asked."""


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The architecture of a student; plain values, so that JSON keeps it.

    The defaults are those published with RN50 as the teacher. With ViT-B/16 the authors' students
    have depth 50, though their recipes are named after 101.

    Attributes:
        decoder: "deeplabv2" or "deeplabv3plus" as published; with a backbone, any decoder of
            segmentation-models-pytorch in lower case, known when the student is built.
        backbone: any backbone of timm, known when the student is built; None is the published
            ResNet-v1c.
        depth: layers of the ResNet-v1c, 50 or 101; not read with another backbone.
        width: channels after its stem, even; stage i has 4 x width x 2^(i - 1); nor is it.
        skip: channels to which the published DeepLabv3+ reduces stage 1; no other reads it.
        embed_dim: channels D of text rows and features: 1024 for RN50, 768 RN50x16, 512 ViT-B/16.
        background: whether a learnable background is class 0, before those of the text rows.
        dropout: the share of feature channels dropped in training before classification.
    """

    decoder: str = "deeplabv2"
    backbone: str | None = None
    depth: int = 101
    width: int = 64
    skip: int = 48
    embed_dim: int = 1024
    background: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.backbone is None and self.decoder not in PUBLISHED_DECODERS:
            raise StudentError(
                f"decoder: expected {_either(PUBLISHED_DECODERS)}, got {self.decoder!r}; any other "
                "needs a backbone, as unet:mobilenetv4_conv_small has"
            )
        if self.depth not in DEPTHS:
            raise StudentError(f"depth: expected {_either(DEPTHS)}, got {self.depth}")
        if self.width < 2 or self.width % 2:
            raise StudentError(f"width: expected an even number from 2, got {self.width}")
        for name in ("skip", "embed_dim"):
            if getattr(self, name) < 1:
                raise StudentError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise StudentError(f"dropout: expected a share in [0, 1), got {self.dropout}")


def parse_student(name: str, *, embed_dim: int, background: bool = False) -> StudentConfig:
    """Return the student of a name: "deeplabv2-r101" as published, or "decoder:backbone".

    Args:
        name: one of `PUBLISHED_NAMES`, or a decoder of segmentation-models-pytorch and a backbone
            of timm, such as "unet:mobilenetv4_conv_small"; whether there are such is known when
            the student is built.
        embed_dim: channels D of the text rows.
        background: whether a learnable background is class 0.

    Raises:
        StudentError: the name is neither.
    """
    decoder, colon, backbone = name.partition(":")
    if colon and decoder and backbone:
        return StudentConfig(
            decoder=decoder, backbone=backbone, embed_dim=embed_dim, background=background
        )
    if name not in PUBLISHED_NAMES:
        raise StudentError(
            f"student: no {name!r}{did_you_mean(name, PUBLISHED_NAMES)}; published are "
            f"{', '.join(PUBLISHED_NAMES)}, and others are decoder:backbone, such as "
            "unet:mobilenetv4_conv_small"
        )
    decoder, _, depth = name.partition("-r")
    return StudentConfig(
        decoder=decoder, depth=int(depth), embed_dim=embed_dim, background=background
    )


def _either(values: tuple[object, ...]) -> str:
    return " or ".join(str(value) for value in values)
