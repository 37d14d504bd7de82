"""uvicorn, as this service needs it: sockets of our own, and a stop that ends what runs."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI

from maskclip.core.errors import MaskCLIPError
from maskclip.web.guard import local_hosts, resolve

_PATIENCE = 30  # seconds for running requests, after which a stop waits no longer


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
    """Bind a port before models are loaded, so that what is taken already is told at once.

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


def server_of(app: FastAPI) -> uvicorn.Server:
    """Return what serves an application until it is told to exit.

    Requests that run then end, and new ones are refused.
    """
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # strangers write its lines
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_PATIENCE,
        timeout_keep_alive=15,
        h11_max_incomplete_event_size=64 * 1024,
    )
    return uvicorn.Server(config)


def run(app: FastAPI, listening: Listening) -> None:
    """Serve until SIGTERM or an interrupt."""
    server_of(app).run(sockets=[listening.socket])
