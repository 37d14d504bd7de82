"""How exported graphs agree with PyTorch: `python benchmarks/export.py`.

Every model is written as a graph of ONNX with 21 classes, each at home in another patch of a drawn
scene, as random weights have no words; labels of drawn scenes at two sizes are then compared. The
embedded models have weights of their own, all others random ones. Seconds are of the processor.
"""

from __future__ import annotations

import tempfile
import time
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from measuring import machine, show

from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.weights import load_clip
from maskclip.core.config import EMBEDDED
from maskclip.core.dense import Scoring, label, score
from maskclip.core.errors import MaskCLIPError
from maskclip.core.methods import METHODS
from maskclip.core.resize import Geometry
from maskclip.emoji.scenes import draw_scene
from maskclip.export.files import halve
from maskclip.export.graph import build_graph
from maskclip.export.labels import OUTPUTS, LabelGraph

HEADER = [
    *("model", "method", "fp32, MB", "labels agree, %", "maps differ by at most"),
    *("fp16, MB", "labels agree, %", "written in, s"),
]


def scenes(size: tuple[int, int]) -> torch.Tensor:
    """Return two drawn scenes, (2, 3, H, W) uint8."""
    drawn = np.stack([draw_scene(seed, size=size).image for seed in (400, 401)])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()


def words(encoder: DenseCLIP, size: tuple[int, int]) -> Scoring:
    """Return 21 classes, each at home in another patch: words of random rows are all nowhere."""
    found = encoder.encode(scenes(size)).features[0].flatten(1).float()
    found = found - found.mean(dim=1, keepdim=True)
    step = max(found.shape[1] // 21, 1)
    rows = torch.nn.functional.normalize(found[:, ::step][:, :21].T, dim=1)
    classes = tuple(range(len(rows)))
    return Scoring(rows=rows, classes=classes, method=encoder.method, temperature=100.0)


def expected(encoder: DenseCLIP, images: torch.Tensor, scoring: Scoring) -> np.ndarray:
    """Return PyTorch's labels (B, H, W)."""
    size = (images.shape[2], images.shape[3])
    dense = encoder.encode(images)
    whole = [(range(size[0]), range(size[1]))]
    geometry = Geometry(whole, dense.covered, size, size, encoder.method.resizes)
    maps = score(dense, scoring)
    return np.stack([label(one[None], geometry, scoring)[0].numpy() for one in maps])


@torch.inference_mode()
def row(model: str, method: str, how: Namespace) -> list[str]:
    """Write a model as a graph, and return its line of the table."""
    clip = load_clip(model, weights=None if model in EMBEDDED else "random")
    encoder = DenseCLIP.of(clip, method=METHODS[method])
    scoring = words(encoder, how.sizes[0])
    started = time.process_time()
    graph = build_graph(LabelGraph(encoder, encoder.encode, scoring), OUTPUTS)
    seconds = time.process_time() - started
    plain = replace(scoring, refine=("pamr",))  # similarities, as the graph's maps are
    lines: list[str] = []
    for half in (False, True):
        if half:
            halve(graph)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(graph.SerializeToString())
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
            shares, worst = [], 0.0
            for size in how.sizes:
                images = scenes(size)
                labels, _, maps = session.run(list(OUTPUTS), {"images": images.numpy()})
                shares.append((labels == expected(encoder, images, scoring)).mean())
                own = torch.from_numpy(maps)
                ours = score(encoder.encode(images), plain)
                worst = max(worst, float((own - ours).abs().max()))
            lines.append(f"{path.stat().st_size / 1e6:.1f}")
        lines.append(" / ".join(f"{100 * share:.3f}" for share in shares))
        if not half:
            lines.append(f"{worst:.1e}")
    return [model, method, *lines, f"{seconds:.0f}"]


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["emoji-rn", "emoji-vit", "ViT-B-16"])
    parser.add_argument("--methods", nargs="+", default=["clean"])
    parser.add_argument("--size", type=int, nargs=2, default=(416, 555), metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", action="store_true")
    how = parser.parse_args()
    how.sizes = [tuple(how.size), (256, 256)]
    torch.set_num_threads(how.threads)
    rows = [HEADER]
    for model in how.models:
        for method in METHODS if how.methods == ["all"] else how.methods:
            try:
                rows.append(row(model, method, how))
            except MaskCLIPError as error:
                rows.append([model, method, str(error), *[""] * (len(HEADER) - 3)])
            print(" · ".join(rows[-1]), flush=True)
    show(f"Exported graphs: {machine()}", rows, markdown=how.markdown)


if __name__ == "__main__":
    main()
