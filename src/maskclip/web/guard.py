"""Who may ask, and how much: keys, hosts, origins, sizes of bodies; the headers of every answer."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import logging
import secrets
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maskclip.web.answers import json_bytes
from maskclip.web.turns import Share

OPEN_PATHS = ("/healthz",)
"""What is answered without a key."""

VISITOR = "maskclip_visitor"
"""The cookie that tells visitors of the page apart: a random number, and nothing about them."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
_CLOSE = {"Connection": "close"}
_FAILED = "an error of the service; its log has more"
_LOG = logging.getLogger("uvicorn.error")
_READING = ("GET", "HEAD", "OPTIONS")
_MOST_DIGITS = 20  # of a length that is read; Python refuses to read thousands


class RefusedError(HTTPException):
    """A request that is not answered: a status, a line that says why, further headers."""

    def __init__(self, status: int, line: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, line, dict(headers or {}))


class Guard:
    """Lets in what may come in, and puts the same headers on every answer.

    Args:
        app: what answers.
        key: which requests must bring, as bearer token or as password; None for none.
        hosts: the names by which the service may be called; None for any.
        max_body: the most bytes of a body.
        max_bodies: the most bytes of all bodies that are read at a time.
        timeout: seconds for which a body may take to arrive.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        key: str | None,
        hosts: frozenset[str] | None,
        max_body: int,
        max_bodies: int,
        timeout: float,
    ) -> None:
        self.app, self.key, self.hosts = app, key, hosts
        self.max_body, self.timeout = max_body, timeout
        self._arriving = Share(max_bodies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        size, visitor = 0, visitor_of(scope)
        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            self._check_origin(scope, headers)
            self._check_key(scope, headers)
            size = self._reserve(scope, headers, visitor)
            if scope["method"] == "HEAD":  # as GET; the server leaves out the body
                scope = {**scope, "method": "GET"}
            await self.app(scope, self._bounded(receive), answer)
        except RefusedError as refused:
            if not started:
                await _refuse(refused, answer)
        except Exception:
            _LOG.exception("an error of maskclip, at %s %s", scope["method"], scope["path"])
            if not started:
                await _refuse(RefusedError(500, _FAILED), answer)
        except asyncio.CancelledError:  # a stop waits no longer
            if not started:
                await _refuse(RefusedError(503, "busy: the service is stopping", _CLOSE), answer)
        finally:
            self._arriving.give_back(visitor, size)

    def _check_host(self, headers: Headers) -> None:
        """Refuse other names of this machine: a stranger's page may have pointed its own here."""
        if self.hosts is None:
            return
        host = headers.get("host", "")
        parts = _split(f"//{host}")
        name = None if parts is None or "@" in host or parts.netloc != host else parts.hostname
        if name is None or not (name in self.hosts or _is_loopback(name)):
            raise RefusedError(421, "this service is not known by that name: use its own address")

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """Refuse what pages of other sites send in a visitor's name."""
        if scope["method"] in _READING:
            return
        origin = headers.get("origin")
        own = True
        if origin is not None:
            parts = _split(origin)
            own = parts is not None and parts.netloc == headers.get("host")
        if not own or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise RefusedError(403, "a page of another site may not ask here")

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if self.key is None or scope["path"] in OPEN_PATHS:
            return
        kind, _, value = headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            value = _password_of(value)
        elif kind.lower() != "bearer":
            value = ""
        if not secrets.compare_digest(value.strip().encode(), self.key.encode()):
            raise RefusedError(
                401,
                "a key is needed: send it as bearer token, or as the password of basic auth",
                {"WWW-Authenticate": 'Basic realm="maskclip", charset="UTF-8"'},
            )

    def _reserve(self, scope: Scope, headers: Headers, visitor: str) -> int:
        """Return the bytes that a body may take, of those that all may take together."""
        if scope["method"] in _READING:
            return 0
        length = headers.get("content-length", "")
        size = self.max_body
        if length.isascii() and length.isdigit():
            digits = length.lstrip("0")
            if len(digits) > _MOST_DIGITS:
                raise self._too_large()
            size = int(digits or "0")
        if size > self.max_body:
            raise self._too_large()
        if not self._arriving.take(visitor, size):
            raise RefusedError(503, "busy: too much is being sent at once", {"Retry-After": "2"})
        return size

    def _too_large(self) -> RefusedError:
        most = self.max_body / 2**20
        return RefusedError(413, f"too large: at most {most:g} MiB are taken", _CLOSE)

    def _bounded(self, receive: Receive) -> Receive:
        """Return what receives a body, up to its limits."""
        read = 0
        loop = asyncio.get_running_loop()
        until = loop.time() + self.timeout
        complete = False

        async def bounded() -> Message:
            nonlocal read, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise RefusedError(408, "the request took too long to arrive", _CLOSE) from None
            read += len(message.get("body", b""))
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            if read > self.max_body:
                raise self._too_large()
            return message

        return bounded


def visitor_of(scope: Scope) -> str:
    """Return who sends a request, for what visitors share.

    It is an address, for who has many of them tells others apart by what is none of their making;
    of IPv6 its network. Visitors on this machine are told apart by the cookie of the page too.
    """
    address = (scope.get("client") or ("", 0))[0]
    if _is_loopback(address):
        return f"{address} {cookie_parser(Headers(scope=scope).get('cookie', '')).get(VISITOR, '')}"
    try:
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    except ValueError:
        return str(address)


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Return what a service binds to that is given a host: the family, and the first address.

    Raises:
        OSError, UnicodeError: there is no such host.
    """
    family, *_, place = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return family, place


def local_hosts(host: str) -> frozenset[str] | None:
    """Return the names by which a service on this machine alone may be called; else None.

    A host is this machine alone if what it resolves to is, however it is written. Addresses of
    this machine are no names that strangers could point here: the guard takes all of them.
    """
    try:
        _, place = resolve(host, 0)
    except (OSError, UnicodeError):
        return None
    if not _is_loopback(str(place[0])):
        return None
    return frozenset({"localhost", host.strip("[]").lower()})


def _is_loopback(text: str) -> bool:
    """Return whether a text is an address of this machine alone, also as IPv6 writes IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _split(address: str) -> SplitResult | None:
    """Return the parts of an address; None if it is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return None


def _password_of(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except ValueError:  # no base64, or no UTF-8 in it
        return ""


async def _refuse(refused: RefusedError, send: Send) -> None:
    body = json_bytes({"error": refused.detail})
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **(refused.headers or {}),
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status_code, "headers": raw})
    await send({"type": "http.response.body", "body": body})
