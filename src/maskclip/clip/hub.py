"""Files of the Hugging Face hub: those of this machine, or downloaded."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

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
