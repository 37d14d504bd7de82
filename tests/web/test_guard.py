"""Who may ask: keys, hosts, origins; how much: sizes of bodies; and what every answer says."""

import base64
import zlib

import pytest

from maskclip.web.asking import Limits
from maskclip.web.guard import HEADERS, local_hosts


def basic(password):
    return {"Authorization": f"Basic {base64.b64encode(f'me:{password}'.encode()).decode()}"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer sécret".encode()}, 401),
        ({"Authorization": "Digest secret"}, 401),
        ({"Authorization": "Basic !!!"}, 401),
        (basic("wrong"), 401),
        (basic("secret"), 200),
        ({"Authorization": "Bearer secret"}, 200),
    ],
)
def test_a_key_is_a_bearer_token_or_a_password(serve, headers, status):
    client = serve(key="secret")
    for path in ("/v1/models", "/", "/openapi.json", "/docs"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == status, path
        assert ("www-authenticate" in answer.headers) == (status == 401)
    assert client.get("/healthz").status_code == 200


def test_on_this_machine_it_answers_to_the_names_of_this_machine(serve):
    client = serve()
    for host, status in {
        "localhost:8000": 200,
        "127.0.0.1": 200,
        "[::1]:8000": 200,
        "evil.example": 421,
        "127.0.0.1.evil.example:8000": 421,
        "": 421,
    }.items():
        assert client.get("/healthz", headers={"Host": host}).status_code == status, host
    assert serve(host="0.0.0.0").get("/healthz", headers={"Host": "a.b"}).status_code == 200
    assert local_hosts("0.0.0.0") is None
    assert local_hosts("labels.example.org") is None
    assert "127.0.0.2" in local_hosts("127.0.0.2")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9000"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_pages_of_other_sites_may_not_ask(serve, scene, headers):
    client = serve()
    files = {"image": ("a.png", scene[0])}
    for path in ("/v1/photos", "/v1/segment"):
        assert client.post(path, files=files, headers=headers).status_code == 403
    own = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/v1/photos", files=files, headers=own).status_code == 200


def test_every_answer_has_the_same_headers(serve, scene):
    client = serve(key="secret")
    key = {"Authorization": "Bearer secret"}
    answers = [
        client.get("/", headers=key),
        client.get("/nothing", headers=key),
        client.get("/v1/models"),
        client.post("/v1/segment", headers=key),
        client.get("/healthz", headers={"Host": "evil.example"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 401, 422, 421]
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
        assert "server" not in answer.headers


def chunks(size):
    """A body of zeros whose length is not said."""
    for _ in range(size // 1024):
        yield bytes(1024)


def test_large_bodies_are_refused_before_they_are_read(serve, scene):
    client = serve(limits=Limits(max_upload=64 * 1024))
    sent = client.post("/v1/segment", content=bytes(65 * 1024))
    assert (sent.status_code, sent.json()["error"]) == (
        413,
        "too large: at most 0.0625 MiB are taken",
    )
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for path in ("/v1/segment", "/v1/photos", "/v1/photos/x/labels"):
        assert client.post(path, content=chunks(128 * 1024), headers=form).status_code == 413
    assert client.post("/v1/photos", files={"image": ("a.png", scene[0])}).status_code == 200


def test_bodies_that_arrive_at_a_time_are_bounded(serve, scene):
    client = serve(limits=Limits(max_uploads=0))
    answer = client.post("/v1/photos", files={"image": ("a.png", scene[0])})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


def bomb(width, height):
    """A PNG of a few bytes for so many pixels."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + crc

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    rows = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "status", "line"),
    [
        (b"", 422, "`image`: an empty file"),
        (b"<html>not an image</html>", 422, "the photo: not an image that can be read"),
        (b"\xff\xd8\xff\xe0" + bytes(100), 422, "the photo: "),
        (bomb(100_000, 100_000), 413, "the photo: 100000x100000 = 10,000,000,000 pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", 422, "the photo: not an image that can be read"),
        (b"GIF89a", 422, "the photo: "),
    ],
    ids=["empty", "html", "jpeg", "bomb", "eps", "gif"],
)
def test_what_is_no_photo_gets_one_line(serve, data, status, line):
    client = serve()
    for path in ("/v1/segment", "/v1/photos"):
        fields = {} if path.endswith("photos") else {"words": "dog"}
        answer = client.post(path, files={"image": ("a.png", data)}, data=fields)
        assert answer.status_code == status
        said = answer.json()["error"]
        assert said.startswith(line)
        assert "\n" not in said
        assert "max_pixels" not in said


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b'{"words": 3}', "application/json"),
        (b'{"words": "dog"}', "text/plain"),
        (b"\xff\xfe", "application/json"),
        (b"{" + b'"a":{' * 50_000, "application/json"),
        (b"words=dog", "application/x-www-form-urlencoded"),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b"", "multipart/form-data"),
    ],
)
def test_bodies_of_another_kind_get_one_line(serve, scene, content, kind):
    client = serve()
    photo = client.post("/v1/photos", files={"image": ("a.png", scene[0])}).json()
    for path in ("/v1/segment", f"/v1/photos/{photo['id']}/labels"):
        answer = client.post(path, content=content, headers={"Content-Type": kind})
        assert answer.status_code in (400, 422), path
        assert set(answer.json()) == {"error"}


def test_names_of_files_are_shown_harmlessly(serve, scene):
    client = serve()
    for name, shown in {
        "../../etc/passwd": "passwd",
        "C:\\photos\\dog.png": "dog.png",
        "a\u202eb.png": "a\\u202eb.png",
        "x" * 500 + ".png": "x" * 116 + ".png",
    }.items():
        answer = client.post("/v1/photos", files={"image": (name, scene[0])})
        assert answer.json()["name"] == shown


def test_an_error_of_the_service_tells_nothing(serve, scene, monkeypatch):
    client = serve()

    def fail(*_, **__):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(client.app.state.engine.models, "get", fail)
    answer = client.post("/v1/segment", files={"image": ("a", scene[0])}, data={"words": "dog"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "an error of the service; its log has more"}
    assert answer.headers["x-frame-options"] == "DENY"
