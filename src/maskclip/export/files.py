"""Exported files: graphs of ONNX and programs of `torch.export`, written, checked and opened.

A file of ONNX is opened only after it was looked through: it names what it needs, has all its
weights within, and no operations but ONNX's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from maskclip.core.errors import MaskCLIPError, require_extra
from maskclip.core.text import brief, printable
from maskclip.export.description import PROGRAM_SUFFIX, SUFFIX, Description
from maskclip.export.graph import INPUT, PIXELS, ExportError, cause
from maskclip.export.labels import OUTPUTS

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

PROGRAM_ENTRY = "maskclip.json"
"""The entry of a program's archive that describes it: a table of `Description.to_metadata`."""

_METADATA = 14  # the field of a model's metadata, in ONNX's message
_MOST_METADATA = 16 << 20  # bytes
_MOST_FIELDS = 10_000  # a model has a dozen, and one for each entry of its metadata
_LARGEST = 2 << 30  # bytes: no message is larger
_HALVED = 256  # numbers from which on a tensor is stored in half precision
_DOMAINS = ("", "ai.onnx")


class ExportedFileError(MaskCLIPError):
    """A file of ONNX that cannot be run."""


def describe(model: ModelProto, description: Description) -> None:
    """Write into a graph what it says of itself."""
    del model.metadata_props[:]
    for name, value in description.to_metadata().items():
        model.metadata_props.add(key=name, value=value)
    model.producer_name, model.producer_version = "maskclip", description.version


def halve(model: ModelProto) -> None:
    """Store the weights of a graph in half precision, in place; it computes in float32 still."""
    import onnx
    from onnx import numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _HALVED:
            continue
        name = tensor.name
        values = numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(values).all():
            continue  # beyond the largest of half precision
        tensor.CopyFrom(numpy_helper.from_array(values, f"{name}.half"))
        casts.append(
            onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def save_program(program: ExportedProgram, path: Path, description: Description) -> None:
    """Write a program of `torch.export`, with what it says of itself.

    Raises:
        ExportError: torch cannot store it.
        OSError: it cannot be written.
    """
    import torch

    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
                node.meta.pop(key, None)  # paths of this machine
    entries = {PROGRAM_ENTRY: json.dumps(description.to_metadata())}
    try:
        torch.export.save(program, path, extra_files=entries)
    except OSError:
        raise
    except Exception as error:  # of its own kinds, in many lines
        raise ExportError(
            f"torch.export cannot store this as {PROGRAM_SUFFIX}: {cause(error)}; choose a name "
            f"that ends in {SUFFIX}"
        ) from error


def read_description(path: str | os.PathLike[str]) -> Description:
    """Return what a file of ONNX says of itself; its weights are not read.

    Raises:
        FileNotFoundError: there is no such file.
        MaskCLIPError: it is none of `maskclip export`, or damaged.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            return Description.from_metadata(_metadata(file, size), source=str(path))
        except (ValueError, UnicodeDecodeError, EOFError) as error:
            if isinstance(error, MaskCLIPError):
                raise
            raise ExportedFileError(f"{path}: no ONNX file, or damaged ({error})") from error


def _metadata(file: BinaryIO, size: int) -> dict[str, str]:
    """Return the metadata of a model: of its message, the fields 14, each a key and a value."""
    found: dict[str, str] = {}
    fields = read = 0
    while file.tell() < size:
        field, kind = divmod(_varint(file), 8)
        fields += 1
        if field == 0 or fields > _MOST_FIELDS:  # such as zeros of a download that was cut off
            raise ValueError("its fields are not those of ONNX")
        if kind == 0:
            _varint(file)
            continue
        if kind != 2:
            raise ValueError("its fields are not those of ONNX")
        length = _varint(file)
        if length > size - file.tell():
            raise ValueError("it ends too early")
        if field != _METADATA:
            file.seek(length, os.SEEK_CUR)
            continue
        read += length
        if read > _MOST_METADATA:
            raise ValueError("its metadata is too large")
        key, value = _pair(file, file.tell() + length)
        found[key] = value
    return found


def _pair(file: BinaryIO, end: int) -> tuple[str, str]:
    parts = {1: "", 2: ""}
    while file.tell() < end:
        field, kind = divmod(_varint(file), 8)
        if kind != 2 or field not in parts:
            raise ValueError("its metadata is no text")
        length = _varint(file)
        if length > end - file.tell():
            raise ValueError("it ends too early")
        parts[field] = file.read(length).decode()
    return parts[1], parts[2]


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends too early")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number is too long")


class ExportedModel:
    """A file of `maskclip export`, run by ONNX Runtime.

    Args:
        path: the file.
        outputs: those that will be wanted; what only others need is left out.
        threads: that it computes with; None is the runtime's own choice.
        cuda: whether on the first GPU.

    Attributes:
        description: what the file says of itself.
        pixels: what its input is, one of `graph.PIXELS`.

    Raises:
        FileNotFoundError: there is no such file.
        MaskCLIPError: it is damaged, needs other files or operations, or is none of
            `maskclip export`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        outputs: Sequence[str] = OUTPUTS,
        threads: int | None = None,
        cuda: bool = False,
    ) -> None:
        require_extra("export", "onnx", "onnxruntime")
        self.source = str(path)
        self.description = read_description(path)
        self.outputs = tuple(outputs)
        data = _checked_bytes(Path(path), self.outputs)
        self._session = _open(data, self.source, threads=threads, cuda=cuda)
        self.pixels = self._checked_input()

    def run(self, images: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs by name, of images (B, 3, H, W) as `pixels` says.

        Raises:
            ExportedFileError: the graph fails.
        """
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.log_severity_level = 4
        try:
            found = self._session.run(list(self.outputs), {INPUT: images}, options)
        except Exception as error:  # of its own kinds, in several lines
            raise ExportedFileError(f"{self.source}: {_first_line(error)}") from error
        return dict(zip(self.outputs, found, strict=True))

    def _checked_input(self) -> str:
        inputs = self._session.get_inputs()
        kinds = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
        fits = len(inputs) == 1 and inputs[0].name == INPUT and len(inputs[0].shape) == 4
        if not fits or kinds.get(inputs[0].type) not in PIXELS:
            given = ", ".join(f"{part.name} {part.type}" for part in inputs[:3])
            raise ExportedFileError(
                f"{self.source}: expected one input {INPUT} (B, 3, H, W) of uint8 or float, got "
                f"{brief(given)}"
            )
        names = [part.name for part in self._session.get_outputs()]
        if not set(self.outputs) <= set(names):
            raise ExportedFileError(
                f"{self.source}: expected the outputs {', '.join(self.outputs)}, got {brief(names)}"
            )
        return kinds[inputs[0].type]


def _checked_bytes(path: Path, outputs: Sequence[str]) -> bytes:
    """Return a file of ONNX that needs nothing but itself, with some of its outputs alone.

    Raises:
        ExportedFileError: it is damaged, keeps weights in other files, or has operations of others.
    """
    import onnx

    if path.stat().st_size > _LARGEST:
        raise ExportedFileError(f"{path}: no file of ONNX is larger than 2 GiB")
    data = path.read_bytes()
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # of protobuf
        raise ExportedFileError(f"{path}: no ONNX file, or damaged") from error
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ExportedFileError(
                f"{path}: keeps weights in another file, which is not opened: export it anew"
            )
    if model.functions or any(
        attribute.HasField("g") or attribute.graphs
        for node in model.graph.node
        for attribute in node.attribute
    ):
        raise ExportedFileError(
            f"{path}: has loops, branches or functions, which no file of `maskclip export` has"
        )
    for node in model.graph.node:
        if node.domain not in _DOMAINS:
            kind = brief(f"{node.domain}.{node.op_type}")
            raise ExportedFileError(f"{path}: has an operation that is not ONNX's own: {kind}")
    if set(outputs) >= {output.name for output in model.graph.output}:
        return data
    _leave_out_others(model, outputs)
    rest: bytes = model.SerializeToString()
    return rest


def _leave_out_others(model: ModelProto, outputs: Sequence[str]) -> None:
    """Take out of a graph what is not needed for some of its outputs."""
    needed, kept = set(outputs), []
    for node in reversed(model.graph.node):  # each comes after those that it needs
        if needed & set(node.output):
            needed.update(node.input)
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    wanted = [output for output in model.graph.output if output.name in outputs]
    del model.graph.output[:]
    model.graph.output.extend(wanted)


def _tensors(model: ModelProto) -> list[Any]:
    """Return all tensors that a model holds: weights, and constants of its nodes."""
    found = [*model.graph.initializer]
    for sparse in model.graph.sparse_initializer:
        found += [sparse.values, sparse.indices]
    for node in model.graph.node:
        for attribute in node.attribute:
            found += [attribute.t, *attribute.tensors]
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                found += [sparse.values, sparse.indices]
    return found


def _open(data: bytes, source: str, *, threads: int | None, cuda: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    known = onnxruntime.get_available_providers()
    providers = ["CUDAExecutionProvider"] if cuda and "CUDAExecutionProvider" in known else []
    try:
        return onnxruntime.InferenceSession(data, options, [*providers, "CPUExecutionProvider"])
    except Exception as error:  # of its own kinds, in several lines
        raise ExportedFileError(f"{source}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"ONNX Runtime cannot run it: {printable(lines[0] if lines else '')[:200]}"
