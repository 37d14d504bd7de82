"""`maskclip doctor`: what is installed, what it can run on, what is downloaded."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("maskclip", "torch", "torchvision", "open_clip_torch", "numpy", "pillow")


def doctor() -> None:
    """Show versions, devices, caches, and the weights on this machine; paste it into reports.

    **Example**

    `maskclip doctor`
    """
    from maskclip.cli.console import print_table

    rows = [
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        *((package, version(package)) for package in _PACKAGES),
        *_devices(),
        *_caches(),
        *_weights(),
    ]
    print_table("what", "found", rows=rows)


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

    from maskclip.clip.prompts import cache_folder

    return [
        (name, f"{folder} ({_size(folder)})")
        for name, folder in (
            ("cache of weights", Path(HF_HUB_CACHE)),
            ("cache of text rows", cache_folder()),
        )
    ]


def _size(folder: Path) -> str:
    if not folder.is_dir():
        return "not made yet"
    # Links are followed to blobs that are counted where they lie.
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return f"{len(files)} files, {sum(path.stat().st_size for path in files) / 2**20:.1f} MiB"


def _weights() -> list[tuple[str, str]]:
    from maskclip.clip.download import cached_path
    from maskclip.clip.embedded import EMBEDDED
    from maskclip.clip.open_clip_models import architectures, tags

    cached = [
        f"{architecture}:{tag}"
        for architecture in architectures()
        for tag in tags(architecture)
        if cached_path(architecture, tag)
    ]
    return [
        ("embedded models", ", ".join(EMBEDDED)),
        ("downloaded weights", ", ".join(cached) or "none"),
    ]
