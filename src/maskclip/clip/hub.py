"""Files of the Hugging Face hub: those of this machine, or downloaded."""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

_log = logging.getLogger(__name__)

_PATIENCE = 10.0  # seconds for the hub to answer


def hub_file(repository: str, file: str) -> Path:
    """Return a file of a repository; download it when it is not cached.

    Raises:
        OSError: it cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached)
    try:
        check_reachable()
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # besides OSError, those of the HTTP library that the client uses
        raise OSError(f"{repository}/{file}: {error}") from error


def check_reachable() -> None:
    """Fail soon where the hub cannot be reached; its client would retry for a minute.

    Raises:
        OSError: its name is unknown here, or nothing answers for some seconds.
    """
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    if not {"https", "all"} & getproxies().keys():
        hub = urlparse(ENDPOINT)
        port = hub.port or (80 if hub.scheme == "http" else 443)
        socket.create_connection((hub.hostname or "", port), timeout=_PATIENCE).close()


def hub_folder(repository: str, needed: Collection[str], files: Collection[str]) -> Path:
    """Return the folder of a repository's small files; download them when none is cached.

    Args:
        repository: its name, `org/name`.
        needed: one of these files is there in a folder that is complete.
        files: what is downloaded, where the repository has it.

    Raises:
        OSError: they cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    try:
        cached = Path(snapshot_download(repository, local_files_only=True))
        if any((cached / name).is_file() for name in needed):
            return cached
    except Exception as error:  # not there; other clients of HTTP raise errors of their own
        _log.debug("%s is not cached: %s", repository, error)
    try:
        check_reachable()
        return Path(snapshot_download(repository, allow_patterns=list(files)))
    except Exception as error:
        raise OSError(f"{repository}: {error}") from error


def cache_folder(repository: str) -> Path:
    """Return where the hub's client keeps what it downloads of a repository."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
