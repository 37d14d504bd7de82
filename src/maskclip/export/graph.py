"""Networks as ONNX graphs whose batch, height and width are free; no words, no files.

B images, D channels, C channels of keys, h x w grid positions, H x W pixels.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.model import shared_copy
from maskclip.core.errors import MaskCLIPError, quiet_loggers, require_extra
from maskclip.core.text import brief

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

Module = TypeVar("Module", bound=nn.Module)

OPSET = 18
"""The oldest that has all that the networks need: resizing with antialiasing."""

INPUT = "images"
"""The name of a graph's one input, (B, 3, H, W)."""

AXES = ("batch", "", "height", "width")
"""The names of its axes; of the channels there are three."""

PIXELS = {"uint8": torch.uint8, "float32": torch.float32}
"""What the input may be: 0 to 255, or in [0, 1]."""

MOST_BYTES = 2 * 1024**3 - 1024**2
"""Of a graph with its weights: a file of ONNX is one message, of less than 2 GiB."""

_EXAMPLE = (150, 203)  # height x width, px: neither square nor of whole cells
_NOISY = ("torch.onnx", "torch.export", "torch.fx", "torch.__trace", "onnxscript", "onnx_ir")


class ExportError(MaskCLIPError):
    """A network that cannot be written as a graph."""


class EncoderGraph(nn.Module):
    """An encoder as a function of tensors alone: images -> features, then keys, then the image.

    Args:
        encoder: as it was built: `DenseCLIP.prepare` fits it to torch, not to other runtimes.
        keys: also return the keys (B, C, h, w).
        image: also return the images' own embeddings (B, D).
    """

    def __init__(self, encoder: DenseCLIP, *, keys: bool = False, image: bool = False) -> None:
        super().__init__()
        self.encoder, self.keys, self.image = encoder.eval(), keys, image

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what is returned, in their order."""
        return ("features", *(("keys",) if self.keys else ()), *(("image",) if self.image else ()))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what `outputs` names, of images (B, 3, H, W), uint8 or in [0, 1]."""
        dense = self.encoder.encode(images, keys=self.keys, image=self.image)
        return tuple(part for part in (dense.features, dense.keys, dense.image) if part is not None)


def encoder_graph(
    encoder: DenseCLIP, *, keys: bool = False, image: bool = False, pixels: str = "uint8"
) -> ModelProto:
    """Return the graph of a CLIP's image tower, as its method reads it.

    The outputs are `features` (B, D, h, w), `keys` (B, C, h, w) and `image` (B, D); those of a
    method with a feedback are of its first pass. The arguments are those of `EncoderGraph` and of
    `build_graph`.

    Raises:
        ExportError: the graph cannot be made.
    """
    module = EncoderGraph(encoder, keys=keys, image=image)
    return build_graph(module, module.outputs, pixels=pixels)


def build_graph(
    module: nn.Module,
    outputs: Sequence[str],
    *,
    pixels: str = "uint8",
) -> ModelProto:
    """Return a network as a graph of ONNX, its weights within.

    Args:
        module: images (B, 3, H, W) -> a tensor, or a tuple of them; in float32, in eval mode.
        outputs: their names.
        pixels: what the images are, one of `PIXELS`.

    Raises:
        ExportError: the graph cannot be made, or has 2 GiB and more.
        MaskCLIPError: the extra `export` is not installed.
    """
    require_extra("export", "onnx", "onnxscript")
    size = sum(weight.nbytes for weight in module.state_dict().values())
    if size > MOST_BYTES:
        raise ExportError(
            f"the network has {size / 1e9:.1f} GB of weights, and a file of ONNX holds 2.1 GB: "
            "take a smaller model"
        )
    with _quiet(), _one_line():
        program = torch.onnx.export(
            export_program(module, pixels=pixels),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(outputs),
            verbose=False,
        )
        assert program is not None
        model: ModelProto = program.model_proto
    _forget(model)
    _name_axes(model)
    return model


def export_program(module: nn.Module, *, pixels: str = "uint8") -> ExportedProgram:
    """Return a network as a program of `torch.export`, for any batch, height and width.

    Raises:
        ExportError: it cannot be traced so.
    """
    dtype = PIXELS[pixels]
    example = torch.zeros((2, 3, *_EXAMPLE), dtype=dtype)
    free = torch.export.Dim.DYNAMIC
    with _quiet(), _one_line(), torch.no_grad():
        return torch.export.export(
            module, (example,), dynamic_shapes=({0: free, 2: free, 3: free},)
        )


def with_fixed_padding(network: Module) -> Module:
    """Return a copy of a network, of the same weights, whose layers pad by fixed numbers.

    Convolutions of TensorFlow's networks, and pools of ResNets, pad by what their input's size
    leaves over, which takes an exporter hours to follow, or cannot be stored. Here networks get
    images of whole cells, and nothing is left over.

    Args:
        network: of timm's layers, which is given sides that all of its strides divide.
    """
    from timm.layers.conv2d_same import Conv2dSame  # not quick to import
    from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame

    copy = shared_copy(network)
    for parent in list(copy.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv2dSame):
                setattr(parent, name, _FixedPadding(child, nn.Conv2d))
            elif isinstance(child, AvgPool2dSame):
                setattr(parent, name, _FixedPadding(child, nn.AvgPool2d))
            elif isinstance(child, MaxPool2dSame):
                setattr(parent, name, _FixedPadding(child, nn.MaxPool2d, value=-math.inf))
    return copy


class _FixedPadding(nn.Module):
    """A layer that pads as for an input whose sides its strides divide.

    Args:
        layer: with kernel, stride and, perhaps, dilation; (height, width) each.
        plain: its class without padding of its own.
        value: that is put around images.
    """

    def __init__(self, layer: Any, plain: type[nn.Module], *, value: float = 0.0) -> None:
        super().__init__()
        self.layer, self.plain, self.value = layer, plain, value
        dilation = getattr(layer, "dilation", (1, 1))
        sides = zip(layer.kernel_size, dilation, layer.stride, strict=True)
        missing = [max((size - 1) * apart + 1 - step, 0) for size, apart, step in sides]
        self.padding = [part for n in reversed(missing) for part in (n // 2, n - n // 2)]

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, self.padding, value=self.value)
        found: Tensor = self.plain.forward(self.layer, padded)
        return found


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn what exporters raise into one line."""
    try:
        yield
    except MaskCLIPError:
        raise
    except Exception as error:  # of a dozen kinds, in many lines
        raise ExportError(f"this cannot be exported: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """Return the first line of what was the matter in the first place."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {brief(lines[0])}" if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters say of their own work from users."""
    with warnings.catch_warnings(), quiet_loggers(*_NOISY):
        warnings.simplefilter("ignore")
        yield


def _forget(model: ModelProto) -> None:
    """Drop what the exporter notes of the code that it has read: paths of this machine too."""
    del model.metadata_props[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.functions):
        del part.metadata_props[:]
        part.doc_string = ""
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""
    for part in (*model.graph.initializer, *model.graph.value_info):
        del part.metadata_props[:]
    model.graph.doc_string = model.doc_string = ""
    del model.graph.metadata_props[:]


def _name_axes(model: ModelProto) -> None:
    """Call the free axes of the input by names for people, wherever they are spoken of."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    names = {dim.dim_param: name for dim, name in zip(dims, AXES, strict=True) if name}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda m: names.get(m[0], m[0]), dim.dim_param)
