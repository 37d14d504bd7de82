"""The runtimes of `--runtime`, side by side: `python benchmarks/runtimes.py`.

One photo through the image network of ViT-B/16, of RN50 and of the light student, with random
weights, by PyTorch as `segment` runs it, ONNX Runtime and OpenVINO: in turn in one process. The
labels of 171 random text rows are compared with those of PyTorch in float32.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import apart, in_turn, machine, peak_mib, ratios, show, spans
from three_ways import pixels_of, smooth_photo, spread

from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.weights import load_clip
from maskclip.core.device import PRECISIONS
from maskclip.core.method import CLEAN
from maskclip.plus.config import parse_student
from maskclip.plus.files import TrainedStudent
from maskclip.plus.student import build_student
from maskclip.tasks.photo_segmenter import Segmenter
from maskclip.tasks.runtimes import run_by
from maskclip.tasks.segmenter import CLIPSegmenter
from maskclip.tasks.without_clip import StudentSegmenter

STUDENT = "unet:mobilenetv4_conv_small"
MODELS = ("ViT-B-16", "RN50", STUDENT)
WAYS = ("torch", "onnx", "openvino")
CLASSES, DIM = 171, 512


def segmenter_of(model: str, precision: str) -> Segmenter:
    """Return a model with random weights, the same in every process."""
    torch.manual_seed(0)
    if model == STUDENT:
        rows = F.normalize(torch.randn(CLASSES, DIM), dim=1)
        student = build_student(parse_student(model, embed_dim=DIM, background=False), rows)
        return StudentSegmenter(
            TrainedStudent(student),
            name=model,
            fingerprint=f"random {model}",
            method=CLEAN,
            device=torch.device("cpu"),
            precision=precision,
        )
    clip = load_clip(model, weights="random")
    spread(DenseCLIP.of(clip))
    how: dict[str, Any] = {"device": torch.device("cpu"), "templates": "plain", "method": CLEAN}
    return CLIPSegmenter(clip, precision=precision, **how)


def encoder(model: str, precision: str, way: str) -> Any:
    """Return what encodes a photo by a runtime."""
    segmenter = segmenter_of(model, precision)
    run_by(segmenter, way)
    return segmenter.network.encode


def peak(model: str, precision: str, way: str, size: tuple[int, int]) -> float:
    """Return the MiB that one pass adds at its peak; to be called in a fresh process."""
    encode, photo = encoder(model, precision, way), pixels_of([smooth_photo(size, 0)])
    with torch.inference_mode():
        encode(pixels_of([smooth_photo((64, 96), 0)]), keys=False, image=False)
        return peak_mib(partial(encode, photo, keys=False, image=False))


def labels(features: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Return the labels of random text rows."""
    rows = torch.randn(CLASSES, features.shape[1], generator=torch.Generator().manual_seed(1))
    maps = F.conv2d(
        F.normalize(features.float(), dim=1), F.normalize(rows, dim=1)[:, :, None, None]
    )
    return F.interpolate(maps, size, mode="bilinear").argmax(dim=1).numpy()


def main(arguments: Iterable[str] | None = None) -> None:
    parser = ArgumentParser(description="Measure runtimes: speed, memory and labels.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--size", type=int, nargs=2, default=(512, 683))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--markdown", action="store_true")
    how = parser.parse_args(None if arguments is None else list(arguments))
    os.environ["OMP_NUM_THREADS"] = str(how.threads)  # for the fresh processes
    torch.set_num_threads(how.threads)
    size = (how.size[0], how.size[1])
    photo = pixels_of([smooth_photo(size, seed=0)])
    head = "network|precision|runtime|seconds|time / PyTorch's|MiB|labels as float32's"
    rows = [head.split("|")]
    for model in how.models:
        exact: Any = None
        for precision in how.precisions:
            own = [w for w in WAYS if w != "onnx" or PRECISIONS[precision] == torch.float32]
            ways = {way: encoder(model, precision, way) for way in own}
            with torch.inference_mode():
                runs = {
                    way: partial(encode, photo, keys=False, image=False)
                    for way, encode in ways.items()
                }
                found = {way: labels(run().features, size) for way, run in runs.items()}
                exact = found["torch"] if exact is None else exact
                times = in_turn(runs, how.repeats, clock="cpu")
            for way in own:
                cells = [spans(times[way]), ratios(times, way, "torch")]
                memory = apart(peak, model, precision, way, size)
                same = f"{100 * (found[way] == exact).mean():.2f} %"
                rows.append([model, precision, way, *cells, f"{memory:.0f}", same])
            print(rows[-len(own) :], flush=True)
    show("Runtimes", rows, markdown=how.markdown)
    print(machine())


if __name__ == "__main__":
    main()
