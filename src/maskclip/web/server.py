"""uvicorn, as this service needs it: clients that keep up, and a stop that ends what runs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from maskclip.core.errors import MaskCLIPError
from maskclip.web.answers import json_bytes
from maskclip.web.guard import HEADERS, local_hosts, resolve

_PATIENCE = 25  # seconds for running requests, after which a stop waits no longer
_ENDING = 5.0  # seconds for what is computed then, though nobody waits for it any more
_MOST = 500  # connections
_LOG = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class Listening:
    """A socket that is bound.

    Attributes:
        socket: it.
        address: what people type.
        is_local: whether this machine alone can reach it.
    """

    socket: socket.socket
    address: str
    is_local: bool


@contextmanager
def listen(host: str, port: int) -> Iterator[Listening]:
    """Bind a port before models are loaded, so that one that is taken is an error at once.

    Raises:
        MaskCLIPError: the address cannot be had.
    """
    bound = None
    try:
        family, place = resolve(host, port)
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
        bound.listen()  # who connects from now on waits for the models, and is not refused
    except (OSError, UnicodeError) as error:
        if bound is not None:
            bound.close()
        reason = getattr(error, "strerror", None) or "no such address"
        raise MaskCLIPError(
            f"{host}:{port} cannot be bound ({reason}): give another `port`, or 0 for a free one"
        ) from None
    with bound:
        number = bound.getsockname()[1]
        local = local_hosts(host) is not None
        name = f"[{host.strip('[]')}]" if ":" in host else host
        yield Listening(bound, f"http://{name}:{number}", local)


class _StoppedError(BaseException):
    """SIGTERM came."""


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block, as if it were done: so are services stopped."""

    def stop(*_: object) -> None:
        raise _StoppedError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except _StoppedError:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _most_connections() -> int:
    """Return how many connections leave enough of the files that this process may open."""
    with suppress(ImportError):  # Windows has no such bound
        import resource

        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files != resource.RLIM_INFINITY:
            return min(_MOST, files // 2)
    return _MOST


class Connection(H11Protocol):
    """A connection whose client has to keep up: it sends a request, and reads the answer, in time.

    How long the body of a request may take is the guard's matter.
    """

    PATIENCE = 20.0
    """Seconds for the head of a request, or for the next of an answer's bytes to be read."""
    PROGRESS = 16 * 1024
    """Bytes that count as the next."""
    MOST = _most_connections()
    """Connections that are open at once; beyond, that which has been silent for longest goes."""

    _LOOK = 1.0  # seconds between looks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection; where there are too many, let another one go."""
        super().connection_made(transport)
        self._since, self._unread = self.loop.time(), 0
        self._look = self.loop.call_later(self._LOOK, self._watch)
        if len(self.connections) > self.MOST:
            silent = [one for one in self.connections if isinstance(one, Connection) and one.idle]
            first = min(silent, key=lambda one: one._since)  # this one is silent, too
            first.transport.abort()
            self.connections.discard(first)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let a connection go."""
        self._look.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._since = self.loop.time()
        super().on_response_complete()

    @property
    def idle(self) -> bool:
        """Whether it is open and no request is worked on."""
        waits = self.cycle is None or self.cycle.response_complete
        return waits and not self.transport.is_closing()

    def _watch(self) -> None:
        """Look at whether the client keeps up."""
        now, unread = self.loop.time(), self.transport.get_write_buffer_size()
        if unread <= self._unread - self.PROGRESS or (not unread and not self.idle):
            self._since = now
        self._unread = unread
        if now - self._since > self.PATIENCE:
            self.transport.abort()
        else:
            self._look = self.loop.call_later(self._LOOK, self._watch)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; a request of which it was the body is given up."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json_bytes({"error": "this is no HTTP request that can be read"})
            headers = {**HEADERS, "Content-Type": "application/json", "Connection": "close"}
            headers["Content-Length"] = str(len(body))
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            answer = h11.Response(status_code=400, headers=raw, reason=b"Bad Request")
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """Serves until it gets a signal to exit: running requests end then, and new ones are refused.

    Told so again, it ends at once.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        again = self.should_exit
        super().handle_exit(sig, frame)
        if again:
            self.force_exit = True
            _LOG.setLevel(logging.CRITICAL + 1)  # each of the requests would say that it was ended
            for one in list(self.server_state.connections):
                one.transport.abort()


def server_of(app: FastAPI) -> Server:
    """Return what serves an application."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # strangers write its lines
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="error",  # strangers write its warnings
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_PATIENCE,
        timeout_keep_alive=15,
        h11_max_incomplete_event_size=64 * 1024,
    )
    return Server(config)


def run(app: FastAPI, listening: Listening) -> None:
    """Serve until SIGTERM or an interrupt."""
    server = server_of(app)
    try:
        server.run(sockets=[listening.socket])
    finally:
        if not app.state.engine.stop(seconds=_ENDING):
            sys.stdout.flush()  # who ends Python while a thread is in torch has it crash
            os._exit(0)
