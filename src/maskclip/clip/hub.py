"""Files of the Hugging Face hub: those of this machine, or downloaded, resumed and checked.

The hub's client looks after the cache, tokens and mirrors (HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT). It
begins a broken download anew and compares sizes alone; here what has come is kept until the rest
has, and a file is only let into the cache when its hash is the one that the hub says.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

from maskclip.core.errors import MaskCLIPWarning, quiet_loggers
from maskclip.core.text import printable

_PATIENCE = 10.0  # seconds for the hub to answer
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_UNFINISHED = ".unfinished"
_FULL = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


PREFIX = "hf-hub:"
"""How names of repositories of the hub begin."""

CONFIG = "open_clip_config.json"
"""The configuration of a model, in a repository or in a folder as open_clip writes it."""

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""What open_clip calls the weights of a repository, the best first."""
TIMM_WEIGHTS = "model.safetensors"
"""What timm calls its own. It reads them itself, and files of other kinds could run code."""


class DownloadError(OSError):
    """A file cannot be downloaded; the message is one line that says why, and what to do."""


class NoSuchFileError(DownloadError):
    """The hub has the repository, and no such file in it."""


def names_folder(name: str) -> bool:
    """Whether the name of a model is a repository's of the hub, or a folder's of open_clip."""
    return name.startswith(PREFIX) or (Path(name) / CONFIG).is_file()


def hub_file(repository: str, *files: str, revision: str = "main") -> Path:
    """Return the first of some files that a repository has; download it when none is cached.

    Args:
        repository: its name, `org/name`.
        *files: names of files in it, the best first.
        revision: a branch, a tag or a commit.

    Raises:
        DownloadError: it cannot be downloaded.
    """
    with _as_download_error(repository, revision):
        for file in files:
            cached = cached_file(repository, file, revision=revision)
            if cached is not None:
                return cached
        check_reachable()
    for file in files:
        try:
            return download(repository, file, revision=revision)
        except NoSuchFileError:
            continue
    raise NoSuchFileError(
        f"{repository} at {hub_address()} has no {' and no '.join(files)}"
        + (f" at the revision {printable(revision)}" if revision != "main" else "")
    )


def hub_folder(
    repository: str, needed: Collection[str], files: Collection[str], *, revision: str = "main"
) -> Path:
    """Return the folder of a repository's small files; download them when none is cached.

    Args:
        repository: its name, `org/name`.
        needed: one of these files is there in a folder that is complete.
        files: what is downloaded, where the repository has it; the most important first.
        revision: a branch, a tag or a commit.

    Raises:
        DownloadError: they cannot be downloaded.
    """
    with _as_download_error(repository, revision):
        for name in needed:
            cached = cached_file(repository, name, revision=revision)
            if cached is not None:
                return cached.parent
        check_reachable()
    found = None
    for name in reversed(list(files)):  # what says that all is there comes last
        try:
            found = download(repository, name, revision=revision).parent
        except NoSuchFileError:
            continue
    if found is None:
        raise NoSuchFileError(f"{repository} at {hub_address()} has none of {', '.join(files)}")
    return found


def cached_file(repository: str, file: str, *, revision: str = "main") -> Path | None:
    """Return a file of a repository on this machine, or None; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def cache_folder(repository: str) -> Path:
    """Return where the hub's client keeps what it downloads of a repository."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def hub_address() -> str:
    """Return the address of the hub, or of the mirror that HF_ENDPOINT names."""
    from huggingface_hub.constants import ENDPOINT

    return ENDPOINT


def hub_files(pretrained: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the repository of a tag's weights, and the files that they may be, the best first.

    Args:
        pretrained: what open_clip says of a tag: `hf_hub`, the repository and maybe a file of it.
    """
    hub = pretrained.get("hf_hub", "")
    if not hub:
        return "", []
    repository, file = os.path.split(hub)
    if not file:
        return repository, list(WEIGHTS)
    return repository, list(dict.fromkeys([str(Path(file).with_suffix(".safetensors")), file]))


def url_cache(pretrained: Mapping[str, Any]) -> Path | None:
    """Return where OpenAI's client and open_clip cache a file fetched by its own address."""
    name = pretrained.get("url", "").rpartition("/")[2]
    return Path("~/.cache/clip").expanduser() / name if name else None


def check_reachable(address: str = "") -> None:
    """Fail soon where the hub, or another address, cannot be reached; clients retry for a minute.

    Raises:
        OSError: its name is unknown here, or nothing answers for some seconds.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    there = urlparse(address or hub_address())
    if not {there.scheme, "all"} & getproxies().keys():
        port = there.port or (80 if there.scheme == "http" else 443)
        socket.create_connection((there.hostname or "", port), timeout=_PATIENCE).close()


def download(repository: str, file: str, *, revision: str = "main") -> Path:
    """Download a file into the hub's cache, from where an earlier download of it stopped.

    Raises:
        NoSuchFileError: the repository has no such file.
        DownloadError: it cannot be downloaded, or is not what the hub says; nothing wrong is left.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # lazily there

    with _as_download_error(repository, revision):
        url = hf_hub_url(repository, file, revision=revision)
        found = get_hf_file_metadata(url)
        digest = found.etag or ""
        if _HASH.fullmatch(digest) is None:
            warnings.warn(
                f"{hub_address()} does not say the hash of {repository}/{file}: what it sends is "
                "taken as it is",
                MaskCLIPWarning,
                stacklevel=2,
            )
        else:
            blob = cache_folder(repository) / "blobs" / digest
            blob.parent.mkdir(parents=True, exist_ok=True)
            lock = blob.parents[2] / ".locks" / blob.parents[1].name / f"{digest}.fetching.lock"
            lock.parent.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(lock):
                if not blob.exists():
                    _fetch(url, blob, digest=digest, size=found.size, name=f"{repository}/{file}")
        # The client finds what is there, and names it in the way of its cache.
        return Path(hf_hub_download(repository, file, revision=revision))


def fetch_address(url: str, target: Path, *, digest: str) -> None:
    """Download the file of an address, from where an earlier download of it stopped.

    Args:
        url: where it is.
        target: where it shall lie.
        digest: the hexadecimal digits that its sha256 begins with; "" where it is not known.

    Raises:
        DownloadError: it cannot be downloaded, or has another hash.
    """
    from huggingface_hub import get_hf_file_metadata

    with _as_download_error(url, "main"):
        check_reachable(url)
        size = get_hf_file_metadata(url, token=False).size
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, target, digest=digest, size=size, name=target.name, headers={})


def _fetch(
    url: str,
    target: Path,
    *,
    digest: str,
    size: int | None,
    name: str,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Download into a file beside `target`, which takes its place when its hash is right."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # as above

    unfinished = target.with_name(f"{target.name}{_UNFINISHED}")
    done = unfinished.stat().st_size if unfinished.exists() else 0
    if size is not None and done > size:
        unfinished.unlink()
        done = 0
    if done and size is None and digest and _has_digest(unfinished, digest):
        unfinished.replace(target)  # nothing says how long it is, and it is whole
        return
    _check_space(target.parent, None if size is None else size - done)
    with unfinished.open("ab") as file, quiet_loggers("huggingface_hub.file_download"):
        http_get(
            url,
            file,
            resume_size=done,
            headers=dict(build_hf_headers() if headers is None else headers),
            expected_size=size,
            displayed_filename=name,
        )
    if not _has_digest(unfinished, digest):
        unfinished.unlink()
        raise DownloadError(
            f"{name}: what came is not what was announced: its hash is not {digest[:12]}..., and "
            "it was thrown away. Try again, or another mirror (HF_ENDPOINT)"
        )
    unfinished.replace(target)


def _check_space(folder: Path, needed: int | None) -> None:
    free = shutil.disk_usage(folder).free
    if needed is not None and needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} free")


def _has_digest(path: Path, digest: str) -> bool:
    """Whether a file's hash is the one announced: its sha256 or sha1, or git's for small files."""
    if len(digest) != 40:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest().startswith(digest)
    for start in (b"blob %d\0" % path.stat().st_size, b""):
        found = hashlib.sha1(start, usedforsecurity=False)
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                found.update(piece)
        if found.hexdigest() == digest:
            return True
    return False


@contextmanager
def _as_download_error(source: str, revision: str) -> Iterator[None]:
    """Turn what the hub's client raises in the block into one line.

    Raises:
        DownloadError: in place of any other exception.
    """
    try:
        yield
    except DownloadError:
        raise
    except Exception as error:  # besides OSError, those of the HTTP library that the client uses
        kind, reason = _reason(error, printable(source), printable(revision))
        raise kind(reason) from error


def _reason(error: Exception, source: str, revision: str) -> tuple[type[DownloadError], str]:
    """Return what to raise for an error of the hub's client, and its line."""
    from huggingface_hub import errors

    answered = f"{source} at {hub_address()}"
    lines: list[tuple[type[Exception], str]] = [  # the first that fits: some are kinds of others
        (
            errors.GatedRepoError,
            f"{answered} is gated: accept its terms on its page there, then set HF_TOKEN to a "
            "token of your account",
        ),
        (
            errors.RepositoryNotFoundError,
            f"{answered}: there is no such repository, or it is private: check its name (org/name)"
            ", and set HF_TOKEN for one of your own",
        ),
        (errors.RevisionNotFoundError, f"{answered} has no revision {revision}"),
        (errors.HFValidationError, f"{source!r} is no name of a repository: expected org/name"),
    ]
    for known, line in lines:
        if isinstance(error, known):
            return DownloadError, line
    if isinstance(error, errors.EntryNotFoundError):
        return NoSuchFileError, f"{answered} has no such file"
    if isinstance(error, errors.HfHubHTTPError):
        return DownloadError, f"{answered}: it answered with HTTP {_status(error)}"
    if isinstance(error, OSError) and error.errno in _FULL:
        what = f" ({error.strerror})" if error.strerror else ""
        return DownloadError, f"{source}: the disk is full{what}: {_FREE}"
    if isinstance(error, OSError) and error.errno in _FORBIDDEN:
        where = error.filename or "its folder"
        return DownloadError, (
            f"{source}: {where} cannot be written ({error.strerror}): take another folder for the "
            "cache (HF_HUB_CACHE)"
        )
    text = printable(str(error).strip().partition("\n")[0])[:200] or type(error).__name__
    return DownloadError, f"{source}: {text}"


_FREE = (
    "make room and run it again, which goes on where it stopped, or set HF_HUB_CACHE to a folder"
)


def _status(error: Any) -> str:
    return str(getattr(getattr(error, "response", None), "status_code", "an error"))
