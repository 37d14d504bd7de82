"""Files that tasks of a labelling tool name: below given folders, or from one host. No others.

An address comes from whoever may ask, so that it never says where a request goes: it is a path in
one of the folders, or a path on the one host that the service was started with.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import brief, check_key

LOCAL, UPLOADED, STORED = "/data/local-files/", "/data/upload/", "/storage-data/"
"""Where Label Studio serves files: of its disk, of uploads, of a storage of its own."""

_PATIENCE = 10.0  # seconds for the host's next bytes
_FRESH = 120.0  # seconds for which an access token is used; Label Studio's last five minutes
_PIECE = 1 << 16
_MOST_TOKEN_BYTES = 1 << 16


class TaskFileError(MaskCLIPError):
    """A file of a task that may not be read, or cannot; its line says nothing of this machine."""


class TaskFiles:
    """What may be read for tasks: files below folders, files of one Label Studio.

    Args:
        roots: the folders; the first that has the file counts.
        host: the address of Label Studio; None for none.
        token: which it is called with: a personal access token, or a legacy token.
        max_bytes: of a file.

    Raises:
        MaskCLIPError: a folder is not there, the address is none, or the token is missing.
    """

    def __init__(
        self,
        roots: Sequence[Path] = (),
        *,
        host: str | None = None,
        token: str | None = None,
        max_bytes: int,
    ) -> None:
        for root in roots:
            if not root.is_dir():
                raise MaskCLIPError(f"`root`: there is no folder {brief(str(root))}")
        self._roots = tuple(root.resolve() for root in roots)
        self._max_bytes = max_bytes
        self._host = None if host is None else _Host(host, token)

    def check(self) -> None:
        """Refuse where nothing may be read at all.

        Raises:
            TaskFileError: there is neither a folder nor a host.
        """
        if not self._roots and self._host is None:
            raise TaskFileError(
                "no files of tasks may be read: start the service with `root` or `label_studio`"
            )

    def read(self, address: str, *, seconds: float) -> bytes:
        """Return the file at an address that a task gives.

        Args:
            address: `/data/local-files/?d=...`, `/data/upload/...`, or either as a URL.
            seconds: how long this may take.

        Raises:
            TaskFileError: it may not be read, is not there, is too large, or the host refuses.
        """
        parts = _split(address)
        if parts is None:
            raise TaskFileError(f"not the address of a file: {brief(address)}")
        place = _place(parts)
        if place is not None:
            for root in self._roots:
                found = _below(root, place)
                if found is not None:
                    return self._read_file(found)
        self.check()
        if self._host is None:
            raise TaskFileError(
                f"the file {brief(address)} is not below the folders that may be read"
            )
        return self._host.get(parts, max_bytes=self._max_bytes, seconds=seconds)

    def _read_file(self, path: Path) -> bytes:
        try:
            with open(path, "rb", opener=_open_file) as file:
                data = file.read(self._max_bytes + 1)
        except OSError:
            raise TaskFileError("a file of a task cannot be read") from None
        return _checked(data, self._max_bytes)


def _split(address: str) -> SplitResult | None:
    try:
        return urlsplit(address)
    except ValueError:
        return None


def _place(parts: SplitResult) -> str | None:
    """Return where a file lies in a folder: Label Studio's document root, or its media folder."""
    path = parts.path
    if path.rstrip("/").endswith(LOCAL.rstrip("/")):
        return next(iter(parse_qs(parts.query).get("d", [])), None)
    _, found, name = unquote(path).partition(UPLOADED)
    return f"upload/{name}" if found else None


def _below(root: Path, place: str) -> Path | None:
    """Return a regular file of a folder; None for another place, wherever links lead."""
    with suppress(OSError, ValueError, RuntimeError):  # a name with NUL; links in a circle
        path = (root / place).resolve(strict=True)
        if path.is_relative_to(root) and path.is_file():
            return path
    return None


def _open_file(path: str, flags: int) -> int:
    """Open a regular file, also where another one has just taken its name: a link, or a pipe.

    Raises:
        OSError: it is none.
    """
    never = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    opened = os.open(path, flags | never)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError("no regular file")
    return opened


def _checked(data: bytes, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise TaskFileError(f"a file of a task is larger than {max_bytes / 2**20:g} MiB")
    return data


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none: the answer is an error."""


class _Host:
    """One Label Studio, called with its token.

    Raises:
        MaskCLIPError: the address is none, or the token is missing.
    """

    def __init__(self, address: str, token: str | None) -> None:
        parts = _split(address)
        self._origin = None if parts is None else _origin(parts)
        if parts is None or self._origin is None or parts.query or parts.fragment:
            raise MaskCLIPError(
                f"`label_studio`: expected an address such as http://localhost:8080, got "
                f"{brief(address)}"
            )
        if not token:
            raise MaskCLIPError(
                "`label_studio` needs an access token of it: set LABEL_STUDIO_API_KEY in the "
                "environment"
            )
        self._base = parts.path.rstrip("/")
        self._address = f"{parts.scheme}://{parts.netloc}"
        self._token = token.strip()
        check_key(self._token, "LABEL_STUDIO_API_KEY of the environment")
        self._access, self._until = "", 0.0
        # No proxy of the environment: the token goes to this host and nowhere else.
        self._opener = build_opener(_NoRedirects(), ProxyHandler({}))

    def get(self, parts: SplitResult, *, max_bytes: int, seconds: float) -> bytes:
        """Return a file of the host."""
        path = self._path(parts)
        query = f"?{quote(parts.query, safe=_KEPT)}" if parts.query else ""
        request = Request(f"{self._address}{quote(path, safe=_KEPT)}{query}")
        until = time.monotonic() + seconds
        request.add_unredirected_header("Authorization", self._authorization(until))
        return self._fetch(request, max_bytes, until)

    def _path(self, parts: SplitResult) -> str:
        """Return the path of a file on this host, if it is one that Label Studio serves."""
        if (parts.scheme or parts.netloc) and _origin(parts) != self._origin:
            raise TaskFileError("a file of a task is not on the host that may be called")
        path = parts.path
        if not path.startswith(f"{self._base}/"):
            path = f"{self._base}{path}"
        plain = unquote(path.removeprefix(self._base))
        steps = plain.replace("\\", "/").split("/")
        served = plain.startswith((LOCAL, UPLOADED, STORED)) or plain == LOCAL.rstrip("/")
        if not served or ".." in steps or "." in steps:
            raise TaskFileError(
                f"not a file that Label Studio serves itself: {brief(parts.geturl())}"
            )
        return path

    def _authorization(self, until: float) -> str:
        """Return the header of a call; a personal access token is changed for one that works."""
        if self._token.count(".") != 2:  # no JSON web token: a legacy token
            return f"Token {self._token}"
        if time.monotonic() >= self._until:
            request = Request(
                f"{self._address}{self._base}/api/token/refresh",
                data=json.dumps({"refresh": self._token}).encode(),
                headers={"Content-Type": "application/json"},
                method="POST",
            )
            answer = self._fetch(request, _MOST_TOKEN_BYTES, until)
            try:
                self._access = str(json.loads(answer)["access"])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise TaskFileError("Label Studio gave no access token") from None
            self._until = time.monotonic() + _FRESH
        return f"Bearer {self._access}"

    def _fetch(self, request: Request, max_bytes: int, until: float) -> bytes:
        try:
            with self._opener.open(request, timeout=_PATIENCE) as answer:
                data = bytearray()
                while len(data) <= max_bytes:
                    if time.monotonic() > until:
                        raise TimeoutError
                    piece = answer.read1(_PIECE)
                    if not piece:
                        break
                    data += piece
        except HTTPError as error:
            error.close()
            raise TaskFileError(f"Label Studio answers {_said(error.code)}") from None
        except (OSError, HTTPException, ValueError):
            raise TaskFileError("Label Studio cannot be reached, or is too slow") from None
        return _checked(bytes(data), max_bytes)


_KEPT = "%/:=&?~+!$,;'()*@"  # what quoting leaves as it is in a path or a query


def _said(status: int) -> str:
    if 300 <= status < 400:
        return f"{status}, a redirect, which is not followed"
    if status in (401, 403):
        return f"{status}: its access token is not accepted for a file of a task"
    return f"{status} for a file of a task"


def _origin(parts: SplitResult) -> tuple[str, str, int] | None:
    """Return scheme, host and port of an address of HTTP; None for others, or with a user."""
    with suppress(ValueError):  # a port that is none
        if parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            return parts.scheme, parts.hostname, port
    return None
