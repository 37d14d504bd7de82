"""Who may ask: keys, hosts, origins; how much: sizes of bodies; and what every answer says."""

import base64
import logging
import socket
import threading
import zlib

import pytest
from pydantic import BaseModel, ValidationError

import maskclip
from maskclip.cli import main
from maskclip.core.errors import MaskCLIPError
from maskclip.web.asking import Limits
from maskclip.web.guard import HEADERS, Guard, local_hosts
from maskclip.web.page import DownloadRequest, HeatRequest
from maskclip.web.review import Change
from maskclip.web.settings import Settings
from maskclip.web.task_files import TaskFiles


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
        ({"Authorization": "Basic é".encode()}, 401),
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
        "[::ffff:7f00:1]:8000": 200,
        "[": 421,
        "evil.example": 421,
        "127.0.0.1.evil.example:8000": 421,
        "": 421,
        "evil@127.0.0.1": 421,
        "localhost/evil": 421,
        "localhost#": 421,
        "2130706433": 421,
    }.items():
        assert client.get("/healthz", headers={"Host": host}).status_code == status, host
    assert serve(host="0.0.0.0").get("/healthz", headers={"Host": "a.b"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "address", "local"),
    [
        ("127.1", "127.0.0.1", True),
        ("ip6-localhost", "::1", True),
        ("Localhost.Localdomain", "127.0.0.1", True),
        ("[::ffff:127.0.0.1]", "::ffff:127.0.0.1", True),
        ("127.0.0.2", "127.0.0.2", True),
        ("0.0.0.0", "0.0.0.0", False),
        ("labels.example.org", "192.0.2.1", False),
        ("fe80::1", "fe80::1%eth0", False),
        ("nowhere.invalid", None, False),
    ],
)
def test_this_machine_alone_is_told_by_the_address_of_the_host(
    serve, monkeypatch, host, address, local
):
    def resolved(name, port, **_):
        assert name == host.strip("[]")
        if address is None:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", resolved)
        names = local_hosts(host)
        client = serve(host=host)
    assert (names is not None) == local
    for name, status in {"evil.example": 421 if local else 200, host: 200}.items():
        assert client.get("/healthz", headers={"Host": name}).status_code == status, name


KEYS = ["", " ", " secret", "secret\t", "secret\n", "se\ncret", "se\x7fcret", "sécret", "s\udcffe"]


@pytest.mark.parametrize("key", KEYS)
def test_keys_that_cannot_be_sent_are_refused_at_the_start(serve, capsys, key):
    with pytest.raises(MaskCLIPError, match="`key`, or MASKCLIP_KEY of the environment: expected"):
        serve(key=key)
    assert main(["serve", "--key", key, "--model", "no such model"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --key, or MASKCLIP_KEY")
    assert said.count("\n") == 1
    assert "cret" not in said


@pytest.mark.parametrize("key", KEYS[1:])
def test_the_client_refuses_keys_that_cannot_be_sent(monkeypatch, key):
    with pytest.raises(MaskCLIPError, match="`key`, or MASKCLIP_KEY"):
        maskclip.Client(key=key)
    monkeypatch.setenv("MASKCLIP_KEY", key)
    with pytest.raises(MaskCLIPError, match="`key`, or MASKCLIP_KEY"):
        maskclip.Client()
    assert maskclip.Client(key="").key == ""  # none, whatever the environment says


def test_keys_may_be_any_printable_ascii(serve):
    key = "".join(map(chr, range(33, 127))) + " x"
    client = serve(key=key)
    for headers in ({"Authorization": f"Bearer {key}"}, basic(key)):
        assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Origin": "\xff".encode("latin-1")}, 403),
        ({"Content-Length": "9" * 5000}, 413),
        ({"Content-Length": "0" * 5000 + "9" * 5000}, 413),
        ({"Authorization": b"Basic \xff"}, 401),
    ],
)
def test_headers_that_cannot_be_read_are_no_error_of_the_service(serve, caplog, headers, status):
    client = serve(key="secret")
    key = {"Authorization": "Bearer secret"}
    with caplog.at_level(logging.WARNING):
        answer = client.post("/v1/photos", content=b"", headers=key | headers)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert not caplog.records


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


def test_one_visitor_leaves_room_for_what_others_send(serve, scene):
    client = serve(limits=Limits(max_upload=4000, max_uploads=4))
    guard = client.app.middleware_stack
    while not isinstance(guard, Guard):
        guard = guard.app
    assert guard._arriving.take("10.0.0.1", 12_000)  # as many slow uploads of one address
    assert not guard._arriving.take("10.0.0.1", 1)
    assert client.post("/v1/photos", content=b"x" * 4000).status_code == 422


def part(name, value, file=None):
    """A part of a form."""
    head = f'Content-Disposition: form-data; name="{name}"'
    head += "" if file is None else f'; filename="{file}"'
    return f"--x\r\n{head}\r\n\r\n".encode() + value + b"\r\n"


@pytest.mark.parametrize(
    ("parts", "kind", "status", "line"),
    [
        ([part("words", b"dog, " * 300_000)], "", 400, "too much in one form: Part exceeded max"),
        ([part("words", b"dog, " * 10_000)], "", 422, "`words`: 50,000 characters, and at most"),
        ([part("words", b"dog, " * 300_000, "a")], "", 422, "`words`: expected text, got a file"),
        ([part(f"f{n}", b"") for n in range(70)], "", 400, "too much in one form: Too many fie"),
        ([part("image", b"", "a")] * 9, "", 400, "too much in one form: Too many files"),
        ([part("image", b"a", "a")] * 2, "", 422, "`image` is there twice: expected it once"),
        ([part("words", b"cow")] * 2, "", 422, "`words` is there twice: expected it once"),
        ([part("refin", b"none")], "", 422, "no value is called 'refin' (did you mean refine"),
        ([part("words", b"cow")], "; charset=punycode", 422, "expected a form in UTF-8, got 'pun"),
        ([part("words", b"c\0w, dog")], "; charset=UTF-8", 422, "a character that cannot be shown"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_forms_are_read_within_bounds_and_nothing_in_them_is_passed_over(
    serve, scene, parts, kind, status, line
):
    body = b"".join(parts)
    if b'name="image"' not in body:
        body += part("image", scene[0], "a.png")
    headers = {"Content-Type": FORM + kind}
    answer = serve().post("/v1/segment", content=body + b"--x--\r\n", headers=headers)
    assert answer.status_code == status
    assert line in answer.json()["error"]


def test_values_in_the_address_of_a_post_are_not_passed_over(serve, scene):
    answer = serve().post("/v1/segment?words=dog", files={"image": ("a.png", scene[0])})
    assert answer.status_code == 422
    assert answer.json()["error"] == "'words' in the address: expected values in the body"


def test_what_is_not_there_gets_one_line_and_a_head_is_as_a_get(serve):
    client = serve()
    assert client.head("/healthz").status_code == client.head("/v1/models").status_code == 200
    for method, path, taken in [
        ("GET", "/v1/segment", "POST"),
        ("PUT", "/healthz", "GET"),
        ("DELETE", "/v1/photos", "POST"),
    ]:
        answer = client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, taken)
        assert answer.json() == {"error": f"expected {taken}, got '{method}'"}
    for path in ("/nothing", "/../app.py", "/%2e%2e/app.py", "/..%5capp.py", "/app.js%00", "/%ff"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"].startswith("nothing is here")
    said = client.get("/v1/vocabularies/" + 9000 * "a").json()["error"]
    assert "...aaa" in said


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


JSON = "application/json"
FORM = "multipart/form-data; boundary=x"


@pytest.mark.parametrize(
    ("path", "kind", "content", "line"),
    [
        ("labels", JSON, b"{", "the body is not valid JSON (Expecting property name"),
        ("labels", JSON, b"[" * 100_000, "the body is not valid JSON (it is nested more than 100"),
        (
            "labels",
            JSON,
            b"\xff\xfe",
            "the body is not UTF-8 text (byte 0): expected a JSON",
        ),
        (
            "labels",
            JSON,
            b'{"window": %s}' % (b"9" * 6000),
            "the body is not valid JSON (a whole",
        ),
        ("labels", JSON, b'{"window": 1, "window": 2}', "the body is not valid JSON ('window' is"),
        ("labels", JSON, b"[]", "the body: expected a JSON object, sent with Content-Type"),
        ("labels", JSON, b"", "the body: expected a JSON object, sent with Content-Type"),
        ("labels", None, b"{}", "the body: expected a JSON object, sent with Content-Type: "),
        ("labels", "text/plain; a=b", b"{}", "got Content-Type 'text/plain'"),
        ("labels", FORM, b"--x--", "got Content-Type 'multipart/form-data'"),
        (
            "labels",
            JSON,
            b'{"short_side": 1e308}',
            "`short_side`: expected a whole number, got 1e",
        ),
        (
            "labels",
            JSON,
            b'{"short_side": true}',
            "expected a whole number, got true",
        ),
        ("labels", JSON, b'{"short_side": %s}' % (b"9" * 400), "got a whole number of 1329 bits"),
        ("labels", JSON, b'{"key_smoothing": NaN}', "`key_smoothing`: expected a finite number, g"),
        ("labels", JSON, b'{"words": 3}', "`words`: expected text, got 3"),
        ("labels", JSON, b'{"wibble": 1}', "no value is called 'wibble': expected some of words, "),
        ("labels", JSON, b'{"refin": 1}', "no value is called 'refin' (did you mean refine"),
        (
            "download",
            JSON,
            b'{"what": "overlay", "opacity": NaN}',
            "`opacity`: expected a number",
        ),
        ("download", JSON, b'{"what": "x"}', "`what`: expected 'labels', 'overlay', 'scores' or"),
        ("download", JSON, b"{}", "`what` is missing"),
        (
            "segment",
            None,
            b"abc",
            "the body: expected a form, sent as multipart/form-data, got no",
        ),
        ("segment", JSON, b"{}", "got Content-Type 'application/json'"),
        ("segment", "multipart/form-data", b"x", "the body is no such form (Missing boundary"),
        ("segment", FORM, b"--x\r\n", "`image` is missing"),
    ],
)
def test_lines_say_what_was_expected_and_what_came(serve, scene, path, kind, content, line):
    client = serve()
    place = "/v1/segment"
    if path != "segment":
        photo = client.post("/v1/photos", files={"image": ("a.png", scene[0])}).json()
        place = f"/v1/photos/{photo['id']}/{path}"
    answer = client.post(
        place, content=content, headers={} if kind is None else {"Content-Type": kind}
    )
    assert answer.status_code == (400 if "no such form" in line else 422)
    said = answer.json()["error"]
    assert line in said
    assert len(said) <= 300


@pytest.mark.parametrize("model", [Settings, HeatRequest, DownloadRequest, Change])
def test_true_is_no_number(model: type[BaseModel]):
    numbers = [
        name
        for name, field in model.model_fields.items()
        if any(kind in str(field.annotation) for kind in ("int", "float"))
    ]
    assert numbers
    for name in numbers:
        for value in (True, [False]):
            with pytest.raises(ValidationError) as raised:
                model.model_validate({name: value})
            assert name in {error["loc"][0] for error in raised.value.errors()}


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


def test_the_client_says_in_one_line_that_a_port_speaks_no_http():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet():
            line, _ = other.accept()
            with line:
                line.recv(65536)
                line.sendall(b"SSH-2.0-other\r\n")

        threading.Thread(target=greet, daemon=True).start()
        address = f"http://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(MaskCLIPError, match="does not answer"):
            maskclip.Client(address, key="secret", timeout=20).models()


def test_a_token_of_label_studio_that_cannot_be_sent_is_refused():
    with pytest.raises(MaskCLIPError, match="LABEL_STUDIO_API_KEY of the environment: expected"):
        TaskFiles([], host="http://127.0.0.1:8080", token="tökén", max_bytes=1)
