"""A process of its own: what it prints, whom it answers, how it stops; the client that asks it."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

import maskclip
from maskclip.core.errors import MaskCLIPError
from maskclip.tasks.photo_segmenter import Segmenter
from maskclip.web.app import create_app
from maskclip.web.asking import Limits
from maskclip.web.engine import Engine
from maskclip.web.models import Models
from maskclip.web.server import Connection, ended_by_sigterm, listen, server_of


@contextmanager
def running(command, **environment):
    """Run a process whose output is read; it does not outlive the block."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen([sys.executable, *command], env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a service; it is stopped by SIGTERM, which must end it without an error."""
    if not hasattr(signal, "SIGKILL"):
        pytest.skip("no SIGTERM on this system")
    command = ["-m", "maskclip", "serve", "--port", "0", "--model", "emoji", "--max-upload", "1"]
    command += ["--timeout", "600"]  # a machine may be busy
    cache = str(tmp_path_factory.mktemp("cache"))
    with running(command, MASKCLIP_KEY="secret", XDG_CACHE_HOME=cache) as process:
        first = process.stdout.readline()
        assert process.stdout.readline().startswith("only this machine can reach it")
        found = re.fullmatch(r"maskclip is at (http://127\.0\.0\.1:(\d+))\n", first)
        yield found[1], int(found[2])
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


@pytest.fixture
def client(address):
    return maskclip.Client(address[0], key="secret", timeout=600)


def test_the_client_gets_what_segment_gives(client, scene):
    found = client.segment(scene[1], ["cow", "grass", "person=dog,cat"], background=0.5)
    expected = maskclip.load("emoji", device="cpu").segment(
        scene[1], ["cow", "grass", "person=dog,cat"], background=0.5
    )
    assert np.array_equal(found.labels, expected.labels)
    assert found.labels.dtype == np.uint8
    assert [one.name for one in found.classes] == list(expected.vocabulary.names)
    assert {one.name: one.coverage for one in found.classes if one.coverage} == expected.coverage()
    assert client.segment(scene[0], vocabulary="emoji", refine=["tlp", "pamr"]).model == "emoji"
    assert client.models()[0]["name"] == "emoji"
    assert len(client.vocabularies()) > 20


def test_the_client_says_in_one_line_what_is_wrong(client, address, scene, tmp_path):
    with pytest.raises(MaskCLIPError, match=r"127\.0\.0\.1:\d+: no method 'nope'"):
        client.segment(scene[0], "dog", method="nope")
    with pytest.raises(MaskCLIPError, match="a key is needed"):
        maskclip.Client(address[0], key="wrong").models()
    with pytest.raises(MaskCLIPError, match=r"nothing\.png: No such file"):
        client.segment(tmp_path / "nothing.png", "dog")
    with pytest.raises(MaskCLIPError, match="expected one with http://"):
        maskclip.Client("127.0.0.1:8000")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(MaskCLIPError, match="is `maskclip serve` running there"):
        maskclip.Client(f"http://127.0.0.1:{port}").models()


def send(port, head, parts=()):
    """Send raw bytes; return what comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        line.sendall(head)
        for part in parts:
            try:
                line.sendall(part)
            except OSError:
                break
        found = b""
        try:
            while data := line.recv(65536):
                found += data
        except OSError:
            pass
        return found


HEAD = (
    "POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer secret\r\n"
    "Connection: close\r\nContent-Type: multipart/form-data; boundary=x\r\n"
)


def test_a_body_is_refused_by_its_length_and_by_its_bytes(address):
    _, port = address
    said = f"{HEAD}Content-Length: 99999999999\r\n\r\n".encode()
    assert b" 413 " in send(port, said).partition(b"\r\n")[0]
    head = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode()
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    begun = b"%x\r\n%s\r\n" % (len(part), part)
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    answer = send(port, head + begun, [chunk] * 1000)
    assert b" 413 " in answer.partition(b"\r\n")[0] or answer == b""  # or a reset, after it
    assert b" 400 " in send(port, head + chunk + b"0\r\n\r\n").partition(b"\r\n")[0]


def test_the_client_takes_its_key_nowhere_else_and_no_answer_for_granted():
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(302 if self.path == "/v1/models" else 200)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        client = maskclip.Client(f"http://127.0.0.1:{server.server_port}", key="secret")
        assert client.models() == []
        assert asked == [("/v1/models", "Bearer secret"), ("/elsewhere", None)]
        with pytest.raises(MaskCLIPError, match="answers otherwise than `maskclip serve`"):
            client.segment(b"x", "dog")
        with pytest.raises(MaskCLIPError, match="`format`"):
            client.segment(b"x", "dog", format="rle")
        server.shutdown()


def test_a_port_that_is_taken_is_told_in_one_line(address, capsys):
    from maskclip.cli import main

    assert main(["serve", "--port", str(address[1]), "--model", "emoji"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: 127\.0\.0\.1:\d+ cannot be bound \(.*\): give .*\n", said)


def test_a_stop_ends_what_runs_and_refuses_what_comes(scene, monkeypatch):
    encode, begun, gate = Segmenter.encode, threading.Event(), threading.Event()

    def held(self, images, **options):
        begun.set()
        assert gate.wait(60)
        return encode(self, images, **options)

    monkeypatch.setattr(Segmenter, "encode", held)
    found = []
    with listen("127.0.0.1", 0) as place:
        server = server_of(create_app(Engine(Models(["emoji"], device="cpu"))))
        serving = threading.Thread(target=server.run, args=([place.socket],), daemon=True)
        serving.start()
        until = time.monotonic() + 60
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        client = maskclip.Client(place.address)
        asking = threading.Thread(
            target=lambda: found.append(client.segment(scene[0], "cow, grass")), daemon=True
        )
        asking.start()
        assert begun.wait(60)
        server.should_exit = True  # as SIGTERM lets it
        while place.socket.fileno() != -1 and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(MaskCLIPError, match="does not answer"):
            client.models()
        gate.set()
        for thread in (asking, serving):
            thread.join(60)
            assert not thread.is_alive()
    assert found[0].labels.shape == (96, 96)


@contextmanager
def serving(**options):
    """A service of a thread: (its server, its port)."""
    with listen("127.0.0.1", 0) as place:
        app = create_app(Engine(Models(["emoji"], device="cpu")), **options)
        server = server_of(app)
        thread = threading.Thread(target=server.run, args=([place.socket],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield server, place.socket.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def sent(port, data):
    """A connection over which that was sent; nothing is read of the answer."""
    found = socket.create_connection(("127.0.0.1", port), timeout=60)
    found.sendall(data)
    return found


def rest(connection):
    """What is read until the other end closes."""
    read = b""
    try:
        while piece := connection.recv(65536):
            read += piece
    except ConnectionError:
        pass
    return read


HEADERS = b"Host: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"


@pytest.fixture
def hasty(monkeypatch):
    """Clients have to keep up within moments."""
    monkeypatch.setattr(Connection, "PATIENCE", 1.0)
    monkeypatch.setattr(Connection, "_LOOK", 0.02)


def test_who_does_not_keep_up_is_let_go_and_others_are_answered(hasty, caplog):
    with serving(limits=Limits(timeout=0.3)) as (server, port):
        silent = [
            sent(port, b""),
            sent(port, b"GET /healthz HTT"),
            sent(port, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: y\r\n"),
        ]
        late = sent(
            port, b"POST /v1/segment HTTP/1.1\r\nContent-Length: 99\r\n" + HEADERS + b"\r\n--x"
        )
        slow = sent(port, b"GET /hea")
        for letter in b"lthz HTTP/1.1":
            with suppress(ConnectionError):  # a machine may be busy
                slow.sendall(bytes([letter]))
            time.sleep(0.01)
        assert b"200 OK" in sent(port, b"GET /healthz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").recv(99)
        assert [rest(one) for one in (*silent, slow)] == [b""] * 4
        assert rest(late).startswith(b"HTTP/1.1 408 ")
        assert not server.server_state.connections
    assert not caplog.records


def test_who_does_not_read_the_answer_is_let_go_with_it(hasty):
    with serving() as (server, port):
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", port))
        deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 400)
        state, until = server.server_state, time.monotonic() + 60
        while not state.connections:
            assert time.monotonic() < until
        while state.connections or state.tasks:
            assert time.monotonic() < until
            time.sleep(0.01)
        deaf.close()


def test_where_too_many_are_connected_the_longest_silent_goes(monkeypatch):
    monkeypatch.setattr(Connection, "MOST", 3)
    with serving() as (_, port):
        silent = [sent(port, b"GET /heal") for _ in range(5)]
        assert [rest(one) for one in silent[:2]] == [b"", b""]
        silent[-1].sendall(b"thz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert rest(silent[-1]).endswith(b'{"status":"ok","waiting":0}')
        for one in silent:
            one.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"POST /v1/segment HTTP/1.1\r\nContent-Length: -5\r\n" + HEADERS + b"\r\n",
        b"POST /v1/segment HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HEADERS + b"\r\nzz\r\n",
    ],
    ids=["tls", "two hosts", "long", "negative", "no chunk"],
)
def test_what_is_no_http_gets_one_line_and_leaves_none_in_the_log(data, caplog):
    with serving() as (server, port):
        answer = rest(sent(port, data))
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"X-Content-Type-Options: nosniff\r\n" in answer
        assert answer.endswith(b'{"error":"this is no HTTP request that can be read"}')
        while server.server_state.tasks:
            time.sleep(0.005)
    assert not caplog.records


def test_a_second_signal_ends_what_a_first_lets_end(scene, monkeypatch):
    begun, gate = threading.Event(), threading.Event()

    def held(*_, **__):
        begun.set()
        assert gate.wait(60)
        raise MaskCLIPError("too late")

    monkeypatch.setattr(Segmenter, "encode", held)
    level = logging.getLogger("uvicorn.error").level
    with serving() as (server, port):
        body = b'--x\r\nContent-Disposition: form-data; name="words"\r\n\r\ncow\r\n--x\r\n'
        body += b'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + scene[0]
        body += b"\r\n--x--\r\n"
        length = b"Content-Length: %d\r\n" % len(body)
        waiting = sent(port, b"POST /v1/segment HTTP/1.1\r\n" + length + HEADERS + b"\r\n" + body)
        assert begun.wait(60)
        server.handle_exit(signal.SIGTERM, None)
        server.handle_exit(signal.SIGTERM, None)
        assert rest(waiting) == b""
        gate.set()
    logging.getLogger("uvicorn.error").setLevel(level)
    server._captured_signals.clear()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGTERM on this system")
def test_sigterm_ends_a_block_as_if_it_were_done():
    closed, before = [], signal.getsignal(signal.SIGTERM)
    with ended_by_sigterm(), closing(SimpleNamespace(close=lambda: closed.append(1))):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        closed.append("not reached")
    assert closed == [1]
    assert signal.getsignal(signal.SIGTERM) is before
