"""A process of its own: what it prints, whom it answers, how it stops; the client that asks it."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

import maskclip
from maskclip.core.errors import MaskCLIPError
from maskclip.tasks.photo_segmenter import PhotoSegmenter
from maskclip.web.app import create_app
from maskclip.web.engine import Engine
from maskclip.web.models import Models
from maskclip.web.server import listen, server_of


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
        assert process.wait(20) in (0, -signal.SIGTERM)
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


def test_a_port_that_is_taken_is_told_in_one_line(address, capsys):
    from maskclip.cli import main

    assert main(["serve", "--port", str(address[1]), "--model", "emoji"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: 127\.0\.0\.1:\d+ cannot be bound \(.*\): give .*\n", said)


def test_a_stop_ends_what_runs_and_refuses_what_comes(scene, monkeypatch):
    encode, begun, gate = PhotoSegmenter.encode, threading.Event(), threading.Event()

    def held(self, images, **options):
        begun.set()
        assert gate.wait(60)
        return encode(self, images, **options)

    monkeypatch.setattr(PhotoSegmenter, "encode", held)
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
