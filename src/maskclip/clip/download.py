"""Where pretrained weights lie on this machine, and fetching them with open_clip's own client."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import open_clip

from maskclip.clip.checkpoint import WeightsError


def cached_path(architecture: str, tag: str) -> Path | None:
    """Return where the weights lie on this machine, or None when they were never downloaded."""
    from huggingface_hub import try_to_load_from_cache

    pretrained = open_clip.get_pretrained_cfg(architecture, tag)
    for repository, file in _hub_files(pretrained):
        found = try_to_load_from_cache(repository, file)
        if isinstance(found, str):
            return Path(found)
    legacy = _url_cache(pretrained)
    return legacy if legacy is not None and legacy.is_file() else None


def locate(architecture: str, tag: str) -> Path:
    """Return the weights' path; download them first, with open_clip's own progress bar.

    Raises:
        WeightsError: they are not on this machine and cannot be downloaded.
    """
    cached = cached_path(architecture, tag)
    if cached is not None:
        return cached
    pretrained = open_clip.get_pretrained_cfg(architecture, tag)
    try:
        check_reachable()
        return Path(open_clip.download_pretrained(pretrained))
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(_cannot_download(architecture, tag, pretrained)) from error


def _cannot_download(architecture: str, tag: str, pretrained: dict[str, Any]) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    files = _hub_files(pretrained)
    if files:
        repository, file = files[0]
        what = f"{repository}/{file}"
        where: Path | None = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    else:
        what, where = pretrained["url"], _url_cache(pretrained)
    return (
        f"the weights of {architecture}:{tag} ({what}) are not on this machine and cannot be "
        f"downloaded; they would be cached in {where}. Give a local file with --weights FILE "
        f"(for {architecture}:{tag}), or try an embedded model: --model emoji"
    )


def check_reachable() -> None:
    """Fail at once where the hub's name cannot be resolved; its client would retry for a minute."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    if not any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        socket.getaddrinfo(urlparse(ENDPOINT).hostname, 443)


def _hub_files(pretrained: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the (repository, file) pairs under which a tag's weights may be cached."""
    hub = pretrained.get("hf_hub", "")
    if not hub:
        return []
    repository, file = os.path.split(hub)
    if not file:
        names = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    else:
        names = [str(Path(file).with_suffix(".safetensors")), file]
    return [(repository, name) for name in dict.fromkeys(names)]


def _url_cache(pretrained: dict[str, Any]) -> Path | None:
    """Return where OpenAI's client and open_clip cache a file fetched by address."""
    url = pretrained.get("url", "")
    return Path("~/.cache/clip").expanduser() / Path(urlparse(url).path).name if url else None
