"""Files of tasks are read below the folders, or from the one host, and nowhere else."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import brief
from maskclip.web import task_files
from maskclip.web.task_files import TaskFileError, TaskFiles

LIMIT = 1000
WEB_TOKEN = "head.body.sign"  # a personal access token is a JSON web token


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "in" / "a b.png").write_bytes(b"inside")
    (root / "upload" / "1").mkdir(parents=True)
    (root / "upload" / "1" / "x.png").write_bytes(b"uploaded")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "root-too").mkdir()
    (tmp_path / "root-too" / "secret.png").write_bytes(b"secret")
    return root


@pytest.fixture
def hosts():
    """`hosts(answers)`: (address, paths that were asked for with their authorization)."""
    servers = []

    def start(answers):
        calls = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                calls.append((self.path, self.headers.get("Authorization")))
                status, body, headers = answers.get(self.path, (404, b"secret", {}))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", calls

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("address", "content"),
    [
        ("/data/local-files/?d=in/a%20b.png", b"inside"),
        ("/data/local-files?d=in/a%20b.png", b"inside"),
        ("http://anywhere.example/data/local-files/?d=in/a%20b.png", b"inside"),
        ("/data/local-files/?d=in/../in/a%20b.png", b"inside"),
        ("/data/upload/1/x.png", b"uploaded"),
        ("https://anywhere.example/studio/data/upload/1/x.png", b"uploaded"),
    ],
)
def test_files_below_the_folders_are_read(folder, address, content):
    assert TaskFiles([folder], max_bytes=LIMIT).read(address, seconds=5) == content


@pytest.mark.parametrize(
    "address",
    [
        "/data/local-files/?d=../secret.png",
        "/data/local-files/?d=../root-too/secret.png",
        "/data/local-files/?d=..%2Fsecret.png",
        "/data/local-files/?d={outside}",
        "/data/local-files/?d=link.png",
        "/data/local-files/?d=links/secret.png",
        "/data/local-files/?d=",
        "/data/local-files/?d=in",
        "/data/local-files/?d=a%00b",
        "/data/local-files/?d=loop",
        "/data/local-files/?x=in/a%20b.png",
        "/data/upload/../../secret.png",
        "/data/upload/%2e%2e/%2e%2e/secret.png",
        "{outside}",
        "file://{outside}",
        "http://127.0.0.1:9/secret.png",
        "http://[oops/secret.png",
        "in/a b.png",
        "",
    ],
)
def test_nothing_else_is_read_and_nothing_is_told(folder, address):
    outside = folder.parent / "secret.png"
    try:
        (folder / "link.png").symlink_to(outside)
        (folder / "links").symlink_to(folder.parent)
        (folder / "loop").symlink_to(folder / "loop")
    except OSError:
        pytest.skip("links need a right that this user lacks")
    given = address.format(outside=outside)
    with pytest.raises(TaskFileError) as refused:
        TaskFiles([folder], max_bytes=LIMIT).read(given, seconds=5)
    told = str(refused.value).replace(brief(given), "").replace(given, "")
    assert "secret" not in told
    assert str(folder) not in told


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
@pytest.mark.parametrize("late", [False, True])
def test_what_is_no_regular_file_is_neither_read_nor_waited_for(folder, monkeypatch, late):
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "late.png").symlink_to(folder / "in" / "a b.png")
    if late:  # it becomes one after it was looked at
        monkeypatch.setattr(task_files, "_below", lambda root, place: root / place)
    for name in ("pipe.png", "device.png", *(["late.png"] if late else [])):
        with pytest.raises(TaskFileError):
            TaskFiles([folder], max_bytes=LIMIT).read(f"/data/local-files/?d={name}", seconds=5)


def test_a_file_that_is_too_large_is_refused(folder, hosts):
    (folder / "large.png").write_bytes(bytes(LIMIT + 1))
    with pytest.raises(TaskFileError, match="larger than"):
        TaskFiles([folder], max_bytes=LIMIT).read("/data/local-files/?d=large.png", seconds=5)
    address, _ = hosts({"/data/upload/1/x.png": (200, bytes(LIMIT + 1), {})})
    files = TaskFiles(host=address, token="t", max_bytes=LIMIT)
    with pytest.raises(TaskFileError, match="larger than"):
        files.read("/data/upload/1/x.png", seconds=5)


@pytest.mark.parametrize("place", ["", "/studio"])
@pytest.mark.parametrize("whole", [False, True])
def test_the_host_is_called_with_its_token(hosts, place, whole):
    path = f"{place}/data/upload/1/%C3%A9.png"
    address, calls = hosts({path: (200, b"found", {})})
    files = TaskFiles(host=address + place, token="legacy", max_bytes=LIMIT)
    given = "/data/upload/1/%C3%A9.png"
    assert files.read(f"{address}{place}{given}" if whole else given, seconds=5) == b"found"
    assert calls == [(path, "Token legacy")]


def test_a_personal_access_token_is_exchanged_once(hosts):
    answer = json.dumps({"access": "fresh"}).encode()
    path = "/data/local-files/?d=in/a%20b.png"
    address, calls = hosts({"/api/token/refresh": (200, answer, {}), path: (200, b"found", {})})
    files = TaskFiles(host=address, token=WEB_TOKEN, max_bytes=LIMIT)
    assert [files.read(path, seconds=5) for _ in range(2)] == [b"found"] * 2
    assert calls == [("/api/token/refresh", None), *[(path, "Bearer fresh")] * 2]


def test_only_files_of_the_one_host_are_asked_for(hosts):
    other, others = hosts({"/data/upload/1/x.png": (200, b"secret", {})})
    address, calls = hosts({})
    files = TaskFiles(host=address, token="t", max_bytes=LIMIT)
    port = address.rpartition(":")[2]
    for given in (
        f"{other}/data/upload/1/x.png",
        f"http://127.0.0.1:{port}@{other.removeprefix('http://')}/data/upload/1/x.png",
        f"http://localhost:{port}/data/upload/1/x.png",  # another name may be another machine
        f"https://127.0.0.1:{port}/data/upload/1/x.png",
        f"//{other.removeprefix('http://')}/data/upload/1/x.png",
        "http://127.0.0.1:99999/data/upload/1/x.png",
        "/api/users",
        "/data/upload/../../api/users",
        "/data/upload/%2e%2e/%2E%2E/api/users",
        "/data/upload/..%5C..%5Capi",
        "s3://bucket/x.png",
        "file:///etc/hostname",
        "x.png",
    ):
        with pytest.raises(TaskFileError):
            files.read(given, seconds=5)
    assert (calls, others) == ([], [])


def test_a_redirect_is_not_followed(hosts):
    other, others = hosts({"/x": (200, b"secret", {})})
    path = "/data/upload/1/x.png"
    address, _ = hosts({path: (302, b"", {"Location": f"{other}/x"})})
    with pytest.raises(TaskFileError, match="a redirect, which is not followed"):
        TaskFiles(host=address, token="t", max_bytes=LIMIT).read(path, seconds=5)
    assert others == []


@pytest.mark.parametrize(
    ("status", "line"), [(401, "401: its access token"), (404, "404 for a file"), (500, "500 for")]
)
def test_what_the_host_refuses_is_one_line_without_its_answer(hosts, status, line):
    path = "/data/upload/1/x.png"
    address, _ = hosts({path: (status, b"secret", {})})
    with pytest.raises(TaskFileError, match=line) as refused:
        TaskFiles(host=address, token="t", max_bytes=LIMIT).read(path, seconds=5)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("address", ["localhost:8080", "ftp://a", "http://u:p@a", "http://", "x"])
def test_what_cannot_be_a_host_is_refused_at_the_start(address):
    with pytest.raises(MaskCLIPError, match="`label_studio`: expected an address"):
        TaskFiles(host=address, token="t", max_bytes=LIMIT)


def test_a_host_needs_a_token_and_a_folder_must_be_there(tmp_path):
    with pytest.raises(MaskCLIPError, match="LABEL_STUDIO_API_KEY"):
        TaskFiles(host="http://localhost:8080", token=None, max_bytes=LIMIT)
    with pytest.raises(MaskCLIPError, match="`root`: there is no folder"):
        TaskFiles([tmp_path / "none"], max_bytes=LIMIT)
