"""A model's network run by ONNX Runtime or OpenVINO in PyTorch's place; all else stays as it is."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip.core.config import ModelConfig, check_runtime
from maskclip.core.dense import Dense
from maskclip.core.device import PRECISIONS, choose_device, machine
from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import write_json
from maskclip.core.method import Method
from maskclip.core.methods import AUTO, get_method, with_proxy
from maskclip.export.graph import build_graph
from maskclip.export.runtimes import (
    NAMES,
    RuntimeRefusalError,
    Session,
    check_installed,
    computes,
    is_installed,
    kept_folder,
    kept_graph,
    key_of,
    versions,
)
from maskclip.tasks.model_names import names_exported
from maskclip.tasks.photo_segmenter import Segmenter

TORCH = "torch"

_LEAST_GAIN = 0.95  # of PyTorch's time, from which on another runtime is worth it
_PROBE = (256, 341)  # px that are timed: a quarter of a usual photo's
_TURNS = 3
_LEAST_COSINE = {torch.float32: 0.9999, torch.bfloat16: 0.99}


class Runner:
    """What encodes photos for a segmenter by another runtime.

    Graphs are made when their outputs are first needed: keys and the images' own embeddings would
    cost time where they are not.

    Args:
        segmenter: on the CPU; its own network takes over where the graph would differ.
        runtime: one of `NAMES`.

    Raises:
        MaskCLIPError: the runtime is not installed, or cannot run this network.
    """

    def __init__(self, segmenter: Segmenter, runtime: str) -> None:
        check_installed(runtime)
        _refuse(runtime, _refusal(segmenter), segmenter.precision)
        self.segmenter, self.runtime = segmenter, runtime
        self.network, self._plain = segmenter.plain()
        self._sessions: dict[tuple[bool, bool], Session] = {}
        self._session(keys=False, image=False)

    def __call__(self, crops: Tensor, /, *, keys: bool, image: bool) -> Dense:
        """Encode crops (B, 3, h, w) uint8 of one shape."""
        session = self._session(keys=keys, image=image)
        parts = {name: torch.from_numpy(part) for name, part in session(crops.numpy()).items()}
        features, size = parts["features"], (crops.shape[2], crops.shape[3])
        grid = (features.shape[2], features.shape[3])
        if self._by_count(grid):
            return self.segmenter._encode(crops, keys=keys, image=image)
        cell = self.segmenter.cell
        covered = size if self.segmenter.stretch else (grid[0] * cell, grid[1] * cell)
        return Dense(features, parts.get("keys"), covered, parts.get("image"))

    def _session(self, *, keys: bool, image: bool) -> Session:
        wanted = (keys, image)
        if wanted not in self._sessions:
            graph = _Graph(self.network, self._plain, *wanted).eval()
            identity = {
                "weights": self.segmenter.fingerprint,
                "kind": type(self.segmenter).__name__,
                "method": repr(self.segmenter.method),
                "outputs": graph.outputs,
            }
            try:
                self._sessions[wanted] = self._opened(graph, identity)
            except RuntimeRefusalError:  # perhaps of what was kept
                self._sessions[wanted] = self._opened(graph, identity, anew=True)
        return self._sessions[wanted]

    def _opened(self, graph: _Graph, identity: Mapping[str, Any], *, anew: bool = False) -> Session:
        make = partial(build_graph, graph, graph.outputs)
        data = kept_graph(identity, make, anew=anew)
        session = Session(self.runtime, data, graph.outputs, self.segmenter.precision)
        self._check(session, graph)
        return session

    @torch.inference_mode()
    def _check(self, session: Session, graph: _Graph) -> None:
        """Compare a graph with PyTorch on a picture of no whole cells.

        Raises:
            RuntimeRefusalError: they differ.
        """
        crops = _noise((6 * self.segmenter.cell + 5, 7 * self.segmenter.cell + 3))
        found = session(crops.numpy())
        for name, expected in zip(graph.outputs, graph(crops), strict=True):
            ours = torch.from_numpy(found[name])
            same = ours.shape == expected.shape
            cosine = float(F.cosine_similarity(ours, expected, dim=1).min()) if same else 0.0
            if not cosine >= _LEAST_COSINE[self.segmenter.precision]:
                raise RuntimeRefusalError(
                    f"{session.name} does not compute this network as PyTorch does (cosine "
                    f"{cosine:.4f} of {name}): leave `runtime` out"
                )

    def _by_count(self, grid: tuple[int, int]) -> bool:
        """Tell whether a position table would be read in raster order, which a graph does not."""
        native = getattr(getattr(self.network, "visual", None), "grid_size", None)
        if native is None or self.segmenter.method.position_resize != "count":
            return False
        return math.prod(native) == math.prod(grid) and tuple(native) != grid


class _Graph(nn.Module):
    """A network as a function of tensors alone: features, then keys, then the images themselves."""

    def __init__(
        self, network: nn.Module, encode: Callable[..., Dense], keys: bool, image: bool
    ) -> None:
        super().__init__()
        self.network, self.encode, self.keys, self.image = network, encode, keys, image
        self.outputs = ("features", *(("keys",) if keys else ()), *(("image",) if image else ()))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        dense = self.encode(images, keys=self.keys, image=self.image)
        return tuple(part for part in (dense.features, dense.keys, dense.image) if part is not None)


def placed(config: ModelConfig, device: str, runtime: str) -> tuple[ModelConfig, torch.device]:
    """Return a model and its device, as a runtime needs them where they were left open.

    A runtime that cannot run the model is refused, as far as that is known before weights are read.

    Args:
        config: which model, read how; an exported file has a runtime of its own.
        device: as `load` takes it.
        runtime: as `load` takes it.

    Raises:
        MaskCLIPError: there is no such device, or the runtime is not installed or cannot run it.
    """
    check_runtime(runtime)
    if runtime not in NAMES:
        return config, choose_device(device)
    place = choose_device("cpu" if device == "auto" else device)
    if runtime == "onnx" and config.precision == "auto":
        config = replace(config, precision="float32")
    if not names_exported(config.name):
        check_installed(runtime)
        known = config.method != AUTO
        method = with_proxy(get_method(config.method), config.proxy) if known else None
        _refuse(runtime, _why_torch(place, method), PRECISIONS.get(config.precision))
    return config, place


def _refuse(runtime: str, refusal: str | None, precision: torch.dtype | None) -> None:
    """Raise why a runtime cannot run a network: for a reason, or in its precision, if known."""
    if refusal is not None:
        raise RuntimeRefusalError(f"`runtime={runtime}`: {refusal}; leave it out")
    if precision is not None and not computes(runtime, precision):
        named = str(precision).removeprefix("torch.")
        raise RuntimeRefusalError(
            f"`precision`: {NAMES[runtime]} does not compute in {named} here: take float32, or "
            "leave `runtime` out"
        )


def run_by(segmenter: Segmenter, runtime: str) -> None:
    """Let a runtime run the network of a segmenter, which then says which, and why `auto`.

    Raises:
        MaskCLIPError: it cannot.
    """
    if runtime == AUTO:
        _run_by_fastest(segmenter)
    elif runtime not in (TORCH, segmenter.runtime):
        segmenter.encode_by(Runner(segmenter, runtime), runtime)


def _run_by_fastest(segmenter: Segmenter) -> None:
    refusal = _refusal(segmenter)
    installed = [name for name in NAMES if is_installed(name)]
    usable = [name for name in installed if computes(name, segmenter.precision)]
    if refusal is None and not usable:
        names = " and ".join(NAMES[name] for name in installed)
        precision = str(segmenter.precision).removeprefix("torch.")
        there = f"{names}, which is installed, does not compute in {precision}"
        refusal = there if installed else "no other runtime is installed"
    if refusal is not None:
        segmenter.runtime_why = f"as {refusal}"
        return
    runners, faults = {}, []
    for name in usable:
        try:
            runners[name] = Runner(segmenter, name)
        except MaskCLIPError as error:
            faults.append(str(error))
    if not runners:
        segmenter.runtime_why = f"as {faults[0]}"
        return
    seconds = _probed(segmenter, runners)
    fastest = min(runners, key=lambda name: seconds[name])
    share = seconds[fastest] / seconds[TORCH]
    if share <= _LEAST_GAIN:
        why = f"which takes {share:.2f} of PyTorch's time here"
        segmenter.encode_by(runners[fastest], fastest, why=why)
    else:
        segmenter.runtime_why = f"as {NAMES[fastest]} takes {share:.2f} of its time here"


def _refusal(segmenter: Segmenter) -> str | None:
    """Say why only PyTorch can run a segmenter's network; None where others may."""
    refusal = _why_torch(segmenter.device, segmenter.method)
    if refusal is not None:
        return refusal
    try:
        segmenter.plain()
    except MaskCLIPError as error:
        return str(error)
    return None


def _why_torch(device: torch.device, method: Method | None) -> str | None:
    """Say why only PyTorch computes a method on a device, or None; of no method, by the device."""
    if device.type != "cpu":
        return f"other runtimes compute on the CPU, and the device is {device.type}"
    if method is None:
        return None
    if method.feedback is not None:
        return f"the method {method.name!r} reads a photo again by its first labels"
    if "aligned" in dict(method.kernels) and method.alignment.solver == "svd":
        return f"the method {method.name!r} needs a singular value decomposition"
    if "proxy" in dict(method.kernels):
        return "a proxy is run by PyTorch alone"
    return None


def _probed(segmenter: Segmenter, runners: Mapping[str, Runner]) -> dict[str, float]:
    """Return the seconds that PyTorch and runtimes take for a picture, as measured once here."""
    identity = {
        "weights": segmenter.fingerprint,
        "method": repr(segmenter.method),
        "precision": str(segmenter.precision),
        "machine": machine(segmenter.device),
        "versions": versions("onnxruntime", "openvino"),
        "runtimes": sorted(runners),
    }
    path = kept_folder() / f"probe-{key_of(identity)}.json"
    found = _read_probe(path, (TORCH, *runners))
    if found is None:
        found = _measured(segmenter, runners)
        with contextlib.suppress(OSError):  # then it is measured again
            write_json(found, path)
    return found


def _read_probe(path: Any, names: tuple[str, ...]) -> dict[str, float] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and set(found) == set(names)
    return found if whole and all(_is_time(value) for value in found.values()) else None


def _is_time(value: object) -> bool:
    return isinstance(value, float) and 0 < value < math.inf


@torch.inference_mode()
def _measured(segmenter: Segmenter, runners: Mapping[str, Runner]) -> dict[str, float]:
    ways: dict[str, Callable[..., Dense]] = {TORCH: segmenter._encode, **runners}
    crops = _noise(_PROBE)
    best = dict.fromkeys(ways, math.inf)
    for turn in range(1 + _TURNS):
        for name, encode in ways.items():
            start = time.perf_counter()
            encode(crops, keys=False, image=False)
            if turn:  # the first one makes what later ones use again
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def _noise(size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((1, 3, 8, 8), generator=generator)
    return (255 * F.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)).to(torch.uint8)
