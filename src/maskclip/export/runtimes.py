"""Networks run by ONNX Runtime or OpenVINO in PyTorch's place, from graphs that are made once.

A graph is kept in the user's cache, under a name that says of what it was made and what its bytes
are: one that was cut short or changed is made again.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import platformdirs
import torch

from maskclip.core.errors import MaskCLIPError, require_extra
from maskclip.core.files import atomic_path
from maskclip.core.text import brief
from maskclip.export.graph import INPUT

if TYPE_CHECKING:
    from onnx import ModelProto

NAMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
"""The runtimes beside PyTorch, as they are called."""

_MODULES = {"onnx": ("onnxruntime", "export"), "openvino": ("openvino", "openvino")}
_MAKERS = ("onnx", "onnxscript")  # what makes a graph
_PACKAGES = ("maskclip", "torch", *_MAKERS)  # on whose versions it hangs
_MOST_BYTES = 6 * 2**30  # of all graphs that are kept


class RuntimeRefusalError(MaskCLIPError):
    """A runtime that cannot run a network."""


def is_installed(runtime: str) -> bool:
    """Return whether a runtime is there, and what makes its graphs."""
    return all(map(find_spec, (*_MAKERS, _MODULES[runtime][0])))


def check_installed(runtime: str) -> None:
    """Refuse a runtime that is not installed.

    Raises:
        MaskCLIPError: the message has the command that installs it.
    """
    module, extra = _MODULES[runtime]
    require_extra(extra, module)
    require_extra("export", *_MAKERS)


def computes(runtime: str, precision: torch.dtype) -> bool:
    """Return whether a runtime computes in a precision on this processor."""
    if precision == torch.float32:
        return True
    if runtime != "openvino" or precision != torch.bfloat16:
        return False
    import openvino

    with _own_signal_stack():
        return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def versions(*more: str) -> dict[str, str]:
    """Return the versions of what a graph, or a measurement of it, hangs on."""
    found = {}
    for package in (*_PACKAGES, *more):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def kept_folder() -> Path:
    """Return the folder of what is kept; it may not exist yet."""
    return platformdirs.user_cache_path("maskclip") / "runtimes"


def key_of(identity: Mapping[str, Any]) -> str:
    """Return the name of what is kept under an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


def kept_graph(
    identity: Mapping[str, Any], make: Callable[[], ModelProto], *, anew: bool = False
) -> bytes:
    """Return a graph as its bytes, from the cache where it was made before.

    Args:
        identity: all that it is made of, beside the versions of what makes it.
        make: makes it.
        anew: make it whatever is kept.

    Raises:
        MaskCLIPError: it cannot be made.
    """
    folder, key = kept_folder(), key_of({**identity, "versions": versions()})
    for path in folder.glob(f"{key}-*.onnx"):
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            if path.stem == f"{key}-{_digest(data)}" and not anew:
                os.utime(path)  # the latest that was of use
                return data
            path.unlink()  # cut short, changed, or of no use
    made: bytes = make().SerializeToString()
    with contextlib.suppress(OSError):  # a full disk keeps nobody from labelling
        with atomic_path(folder / f"{key}-{_digest(made)}.onnx") as temporary:
            temporary.write_bytes(made)
        _forget_oldest(folder)
    return made


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _forget_oldest(folder: Path) -> None:
    """Remove the graphs that were of no use for longest, beyond what may be kept."""
    total = 0
    for path in sorted(folder.glob("*.onnx"), key=lambda path: -path.stat().st_mtime):
        total += path.stat().st_size
        if total > _MOST_BYTES:
            path.unlink(missing_ok=True)


class Session:
    """A graph in a runtime, on the CPU, with as many threads as PyTorch has.

    Args:
        runtime: one of `NAMES`.
        graph: its bytes.
        outputs: the names of what it returns, in their order.
        precision: what it computes in, one that the runtime `computes`.

    Raises:
        RuntimeRefusalError: the runtime cannot open it.
    """

    def __init__(
        self, runtime: str, graph: bytes, outputs: Sequence[str], precision: torch.dtype
    ) -> None:
        self.name, self.outputs = NAMES[runtime], tuple(outputs)
        opened = _open_onnx if runtime == "onnx" else _opens_openvino(precision)
        try:
            self._run = opened(graph, self.outputs)
        except Exception as error:  # of its own kinds, in several lines
            raise self._fault(error, "open") from error

    def __call__(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Return the outputs by name, of images (B, 3, H, W).

        Raises:
            MemoryError: there is too little of it.
            RuntimeRefusalError: the runtime fails.
        """
        try:
            found = self._run(np.ascontiguousarray(images))
        except Exception as error:  # of its own kinds, in several lines
            if "alloc" in str(error).lower():
                raise MemoryError(str(error)) from error
            raise self._fault(error, "run") from error
        return {
            name: np.asarray(each, np.float32)
            for name, each in zip(self.outputs, found, strict=True)
        }

    def _fault(self, error: Exception, verb: str) -> RuntimeRefusalError:
        lines = str(error).strip().splitlines()
        return RuntimeRefusalError(
            f"{self.name} cannot {verb} this network ({brief(lines[-1] if lines else '')}): leave "
            "`runtime` out"
        )


Run = Callable[[npt.NDArray[np.uint8]], Sequence[Any]]


def _open_onnx(graph: bytes, outputs: Sequence[str]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
    how = onnxruntime.RunOptions()
    how.log_severity_level = 4
    return lambda images: list(session.run(list(outputs), {INPUT: images}, how))


def _opens_openvino(precision: torch.dtype) -> Callable[[bytes, Sequence[str]], Run]:
    """Return what opens graphs in OpenVINO, in a precision."""

    def opened(graph: bytes, outputs: Sequence[str]) -> Run:
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if precision == torch.bfloat16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        with _own_signal_stack():
            core = openvino.Core()
            model = core.compile_model(core.read_model(graph, b""), "CPU", settings)

        def run(images: npt.NDArray[np.uint8]) -> list[Any]:
            found = model({INPUT: images})
            return [np.array(found[name]) for name in outputs]  # its own are used again

        return run

    return opened


class _SignalStack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def _own_signal_stack() -> Iterator[None]:
    """Give the thread the stack for signals back that it had.

    OpenVINO's, where processors have AMX, is only as large as the state of these: Python's handler
    does not fit on it, and Ctrl-C would end in a crash.
    """
    if sys.platform != "linux":
        yield
        return
    exchange = ctypes.CDLL(None).sigaltstack
    before = _SignalStack()
    exchange(None, ctypes.byref(before))
    try:
        yield
    finally:
        exchange(ctypes.byref(before), None)
