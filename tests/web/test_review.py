"""A review as it is called, and as people do it in a browser without a window."""

import io
import shutil
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from maskclip.cli import main
from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.corrections import Corrections
from maskclip.data.formats.base import Labeled
from maskclip.data.formats.per_photo import Palette
from maskclip.data.sources import Source
from maskclip.tasks.label import MANIFEST, ClassStats, Outcome
from maskclip.tasks.label.finished import open_labels
from maskclip.tasks.label.manifest import Manifest
from maskclip.tasks.label.review import Review
from maskclip.web.app import create_app
from maskclip.web.engine import Engine
from maskclip.web.models import Models
from maskclip.web.server import listen

ADDRESS = "http://127.0.0.1:8000"
WORDS = Vocabulary.parse(["dog", "grass", "sky"])
NAMES = ["sub/b", "a", "c"]
"""The photos, most worth a look first: of the first most pixels were dropped."""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def labels_of(name):
    """Return a dog of 20x20 px in grass under a sky; of the first photo a part is dropped."""
    labels = np.full((60, 80), 1, np.uint8)
    labels[:20], labels[30:50, 10:30] = 2, 0
    if name == "sub/b":
        labels[:, 50:] = WORDS.ignore
    return labels


@pytest.fixture
def out(tmp_path):
    """The folder of a labelling, made without a model."""
    out = tmp_path / "labels"
    out.mkdir()
    settings = {
        "model": "emoji",
        "weights": "",
        "method": "clean",
        "templates": "plain",
        "precision": "float32",
        "proxy": None,
        "vocabulary": WORDS.to_dict(),
        "options": {},
        "cleaning": {},
        "formats": ["png"],
    }
    sources = []
    for number, name in enumerate(NAMES):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((60, 80, 3), 60 * number, np.uint8)).save(path)
        sources.append(Source(path, f"{name}.png"))
        Palette(WORDS, out / "png").write(Labeled(name, path.name, labels_of(name)))
    with Manifest(out / MANIFEST) as manifest:
        manifest.plan(sources, settings)
        for chunk in manifest.chunks():
            manifest.record([Outcome(t, 80, 60, tuple(stats(t.name))) for t in chunk])
    return out


def stats(name):
    for label in range(3):
        pixels = int((labels_of("a") == label).sum())
        kept = int((labels_of(name) == label).sum())
        yield ClassStats(
            label, pixels, kept if name == "sub/b" else pixels, 0.9 - 0.1 * (name == "a")
        )


@contextmanager
def served(out):
    with Review(out) as review:
        app = create_app(Engine(Models(["emoji"], device="cpu")), review=review)
        with TestClient(app, base_url=ADDRESS, raise_server_exceptions=False) as client:
            yield client


def change(client, name, action, **more):
    return client.post("/v1/review/change", json={"name": name, "action": action, **more})


def now(out, name):
    return Corrections(out).read_labels(name, WORDS)


def test_photos_are_listed_with_what_is_worth_a_look_first(out):
    with served(out) as client:
        found = client.get("/v1/review").json()
        assert [photo["name"] for photo in found["photos"]] == NAMES
        assert [one["name"] for one in found["classes"]] == list(WORDS.names)
        assert found["photos"][0] == {
            "name": "sub/b",
            "photo": "sub/b.png",
            "width": 80,
            "height": 60,
            "reasons": [],
            "doubt": 0.4375,
            "state": "open",
            "corrected": False,
            "edit": None,
        }
        assert str(out.parent) not in client.get("/v1/review").text


def test_a_photo_and_its_labels_are_shown(out):
    with served(out) as client:
        image = client.get("/v1/review/image", params={"name": "sub/b"})
        assert Image.open(io.BytesIO(image.content)).size == (80, 60)
        shown = client.get("/v1/review/labels", params={"name": "sub/b"})
        assert (np.array(Image.open(io.BytesIO(shown.content))) == labels_of("sub/b")).all()
        region = client.get("/v1/review/region", params={"name": "a", "row": 35, "column": 15})
        assert region.json() == {"id": 0, "pixels": 400, "box": [10, 30, 30, 50]}


def test_labels_of_a_large_photo_are_shown_smaller_pixel_by_pixel(out, monkeypatch):
    monkeypatch.setattr("maskclip.tasks.label.review.SHOWN_SIDE", 40)
    with Review(out) as review:
        shown = review.shown_labels("a")
        assert shown.shape == (30, 40)
        assert (shown == labels_of("a")[::2, ::2]).all()


def test_every_action_is_saved_and_can_be_undone(out):
    true = labels_of("a")
    with served(out) as client:
        dog = {"row": 35, "column": 15}
        answer = change(client, "a", "relabel", label=2, **dog).json()
        assert (answer["photo"]["state"], answer["photo"]["corrected"]) == ("open", True)
        assert (answer["can_undo"], answer["can_redo"]) == (True, False)
        expected = np.where(true == 0, 2, true)
        assert (now(out, "a") == expected).all()
        assert change(client, "a", "accept").json()["photo"]["state"] == "accepted"
        assert change(client, "c", "reject").json()["photo"]["state"] == "rejected"
        for name, state in (("c", "open"), ("a", "open"), ("a", "open")):
            photo = client.post("/v1/review/undo").json()["photo"]
            assert (photo["name"], photo["state"]) == (name, state)
        assert (now(out, "a") == true).all()
        assert client.post("/v1/review/undo").json()["photo"] is None
        assert client.post("/v1/review/redo").json()["photo"]["corrected"]
        assert (now(out, "a") == expected).all()
        change(client, "a", "reset")
        assert (now(out, "a") == true).all()


@pytest.mark.parametrize(
    ("action", "fields", "expected"),
    [
        ("merge", {"row": 35, "column": 15}, lambda old: np.where(old == 0, 1, old)),
        ("ignore", {"row": 0, "column": 0}, lambda old: np.where(old == 2, 255, old)),
        ("relabel", {"row": 25, "column": 0, "label": 0}, lambda old: np.where(old == 1, 0, old)),
    ],
)
def test_regions_are_merged_ignored_and_relabelled(action, fields, expected, out):
    with served(out) as client:
        assert change(client, "a", action, **fields).status_code == 200
    assert (now(out, "a") == expected(labels_of("a"))).all()


def test_a_region_is_one_piece_unless_its_whole_class_is_meant(out):
    with served(out) as client:
        change(client, "a", "relabel", row=0, column=0, label=0)  # the sky, now another dog
        change(client, "a", "relabel", row=35, column=15, label=1)
        assert set(np.unique(now(out, "a"))) == {0, 1}
        change(client, "a", "relabel", row=35, column=15, label=2, whole=True)
        assert set(np.unique(now(out, "a"))) == {0, 2}


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        ({"name": "x", "action": "accept"}, 404, "no photo 'x'"),
        ({"name": "../../etc/passwd", "action": "accept"}, 404, "no photo"),
        ({"name": "a", "action": "wipe"}, 422, "`action`"),
        ({"name": "a", "action": "relabel", "label": 7}, 422, "expected a class from 0 to 2"),
        ({"name": "a", "action": "relabel", "label": 1, "row": 60}, 422, "a photo of 80x60"),
    ],
)
def test_what_cannot_be_done_gets_one_line_and_changes_nothing(body, status, why, out):
    with served(out) as client:
        answer = client.post("/v1/review/change", json=body)
        assert answer.status_code == status
        assert why in answer.json()["error"]
    assert not Corrections(out).photos


def test_no_answer_tells_a_path(out):
    (out / "png" / "a.png").unlink()
    (out.parent / "photos" / "c.png").unlink()
    with served(out) as client:
        for what, name in (("labels", "a"), ("image", "c")):
            answer = client.get(f"/v1/review/{what}", params={"name": name})
            assert answer.status_code == 422
            assert str(out.parent) not in answer.text
            assert f"{name}.png" in answer.json()["error"]


def test_what_cannot_be_saved_is_said(out, monkeypatch):
    with served(out) as client:
        monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
        answer = change(client, "a", "accept")
        assert answer.status_code == 507
        assert answer.json()["error"].startswith("not saved")
        assert client.get("/v1/review").json()["photos"][1]["state"] == "open"


def test_who_looked_at_other_labels_is_refused_and_changes_nothing(out):
    dog = {"row": 35, "column": 15}
    with served(out) as client:
        seen = change(client, "a", "relabel", label=2, **dog).json()["photo"]["edit"]
        assert seen == 1
        for action, fields in (("relabel", {"label": 1, **dog}), ("accept", {})):
            late = change(client, "a", action, edit=None, **fields)
            assert late.status_code == 409
            assert "somebody else has corrected this photo" in late.json()["error"]
        assert change(client, "a", "accept", edit=seen).json()["photo"]["state"] == "accepted"
        assert change(client, "a", "ignore", edit=seen, **dog).status_code == 200
        assert change(client, "a", "reset").json()["photo"]["edit"] is None  # whatever was seen
    assert (now(out, "a") == labels_of("a")).all()


def test_photos_that_changed_or_are_gone_say_so_and_the_others_are_reviewed(out):
    photos = out.parent / "photos"
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(photos / "a.png", compress_level=0)
    (photos / "c.png").unlink()
    with served(out) as client:
        found = client.get("/v1/review").json()["photos"]
        assert [photo["reasons"] for photo in found] == [
            [],
            ["the photo has changed since it was labelled"],
            ["the photo is missing"],
        ]
        assert client.get("/v1/review/image", params={"name": "c"}).status_code == 422
        assert change(client, "c", "accept").status_code == 200


def test_a_damaged_correction_says_how_it_is_mended(out):
    with served(out) as client:
        edit = change(client, "a", "relabel", row=35, column=15, label=2).json()["photo"]["edit"]
        file = out / f"corrections/labels/a.{edit}.png"
        file.write_bytes(file.read_bytes()[:60])
        for answer in (
            client.get("/v1/review/labels", params={"name": "a"}),
            change(client, "a", "relabel", row=0, column=0, label=0),
        ):
            assert answer.status_code == 422
            assert "give the photo the model's labels back" in answer.json()["error"]
        assert change(client, "a", "reset").status_code == 200
        assert client.get("/v1/review/labels", params={"name": "a"}).status_code == 200


def test_a_folder_that_cannot_be_written_is_refused_in_a_line(out, monkeypatch, capsys):
    def refused(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", refused)
    assert main(["serve", "--review", str(out), "--port", "0"]) == 2
    told = capsys.readouterr().err
    assert "corrections cannot be written (Read-only file system)" in told
    assert "copy the labels to where they can be corrected" in told


def test_a_labelling_that_is_being_made_is_not_opened(out, capsys):
    with Manifest(out / MANIFEST):
        assert main(["serve", "--review", str(out), "--port", "0"]) == 2
    assert "in use" in capsys.readouterr().err


def test_a_service_without_a_review_has_none(serve):
    assert serve().get("/v1/review").status_code == 404


def test_a_folder_that_is_no_labelling_is_refused(tmp_path, capsys):
    assert main(["serve", "--review", str(tmp_path), "--port", "0"]) == 2
    assert "is no folder of `maskclip label`" in capsys.readouterr().err


def test_labels_that_are_not_written_as_png_are_refused(out):
    with Manifest(out / MANIFEST) as manifest:
        settings = {**manifest.settings(), "formats": ["coco"]}
        manifest.plan([], settings)
    with pytest.raises(MaskCLIPError, match="the format png is needed"):
        open_labels(out)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is on this machine")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(out, browser):
    """The page of a review, loaded; it asked nobody else, and had no error."""
    with Review(out) as review, listen("127.0.0.1", 0) as listening:
        app = create_app(Engine(Models(["emoji"], device="cpu")), review=review)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening.socket]})
        thread.start()
        page = browser.new_page(viewport={"width": 390, "height": 844})
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{listening.address}/review.html")
        page.wait_for_selector("#classes li")
        yield page
        page.close()
        server.should_exit = True
        thread.join(30)
        assert errors == []
        assert [url for url in asked if not url.startswith(listening.address)] == []


def other(page):
    """Open the review in a second window."""
    second = page.context.browser.new_page(viewport={"width": 1200, "height": 800})
    second.goto(page.url)
    second.wait_for_selector("#classes li")
    return second


def test_letters_of_a_class_are_no_keys_while_a_photo_is_still_on_its_way(page, out):
    held = []
    page.route("**/v1/review/labels?*", lambda route: held.append(route))
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#name:has-text('a.png')")
    page.keyboard.press("/")
    page.keyboard.type("gra")
    held[0].continue_()
    page.wait_for_selector("#region:has-text('Click a region')")
    assert page.locator("#classes li").count() == 1
    assert page.input_value("#search") == "gra"
    assert Corrections(out).of("a").state == "open"


def test_two_windows_see_what_each_other_does(page, out):
    second = other(page)
    second.wait_for_selector("#name:has-text('sub/b.png')")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("3")
    page.wait_for_selector("#state:has-text('corrected')")
    second.keyboard.press("a")  # of labels that it has not seen
    second.wait_for_selector("#problem:has-text('somebody else has corrected this photo')")
    second.wait_for_selector("#state:has-text('corrected')")
    assert Corrections(out).of("sub/b").state == "open"
    with second.expect_response(lambda answer: answer.request.method == "POST" and answer.ok):
        second.keyboard.press("a")
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    page.wait_for_selector("#state:has-text('corrected, accepted')")
    second.close()


def test_what_cannot_be_shown_or_saved_is_said_on_the_page(page, out):
    (out.parent / "photos" / "a.png").unlink()
    second = other(page)  # which has not fetched the photo ahead
    second.keyboard.press("ArrowRight")
    second.wait_for_selector("#problem:has-text('a.png: no such file')")
    second.wait_for_selector("#region:has-text('Click a region')")  # whose labels are there
    second.keyboard.press("x")
    second.wait_for_selector("#progress:has-text('1 of 3')")
    second.context.set_offline(True)
    second.keyboard.press("x")
    second.wait_for_selector("#problem:has-text('not saved: the service cannot be reached')")
    second.context.set_offline(False)
    assert Corrections(out).of("c").state == "open"
    second.keyboard.press("x")
    second.wait_for_selector("#progress:has-text('2 of 3')")
    second.close()


def test_photos_are_listed_by_what_was_made_of_them(page):
    press = page.keyboard.press
    press("x")
    page.wait_for_selector("#name:has-text('a.png')")
    page.select_option("#filter", "rejected")
    shown = "() => [...document.querySelectorAll('#photos li')].map((one) => one.checkVisibility())"
    assert page.evaluate(shown) == [True, True, False]  # the one that is looked at stays
    page.focus("#stage")
    press("ArrowLeft")
    page.wait_for_selector("#name:has-text('sub/b.png')")
    assert page.evaluate(shown) == [True, False, False]
    page.reload()  # the address says which photo
    page.wait_for_selector("#name:has-text('sub/b.png')")


UNNAMED = """() => [...document.querySelectorAll("button, input, select, [tabindex]")]
  .filter((one) => one.checkVisibility())
  .filter((one) => !(one.ariaLabel || one.labels?.[0]?.textContent.trim() ||
    one.getAttribute("aria-describedby") || (one.matches("button") && one.textContent.trim())))
  .map((one) => one.outerHTML)"""


def test_a_review_by_keyboard_alone_on_a_small_screen(page, out):
    def expect(selector, text):
        page.wait_for_selector(f"{selector}:has-text({text!r})")

    press = page.keyboard.press
    expect("#name", "sub/b.png")
    press("ArrowRight")
    expect("#name", "a.png")
    expect("#classes li:nth-child(3)", "33.3%")
    for _ in range(3):
        press("ArrowDown")  # the grass, the sky, the dog
    expect("#region", "Selected: dog, 8.3% of the photo")
    press("3")
    expect("#state", "corrected")
    expect("#classes li:nth-child(3)", "41.7%")
    assert (now(out, "a") == np.where(labels_of("a") == 0, 2, labels_of("a"))).all()
    press("a")
    expect("#name", "c.png")
    press("x")
    expect("#progress", "2 of 3 reviewed")
    assert {name: c.state for name, c in Corrections(out).photos.items()} == {
        "a": "accepted",
        "c": "rejected",
    }
    for _ in range(3):
        press("u")
    expect("#progress", "0 of 3 reviewed")
    expect("#name", "a.png")
    assert not Corrections(out).photos
    press("/")
    page.keyboard.type("gra")
    assert page.locator("#classes li").count() == 1
    assert page.evaluate(UNNAMED) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_phone_stays_at_the_photo_while_one_reviews_and_goes_up_to_one_that_is_chosen(page):
    def expect(name):
        page.wait_for_selector(f"#name:has-text('{name}')")

    def top():
        return page.evaluate("scrollY")

    page.set_viewport_size({"width": 390, "height": 600})
    page.reload()
    page.wait_for_selector("#classes li")
    assert top() == 0
    for button, name in [("next", "a.png"), ("accept", "c.png"), ("undo", "a.png")]:
        page.click(f"#{button}")
        expect(name)
        assert top() == 0
    page.click("#photos li:last-child button")  # Playwright scrolls down to it
    expect("c.png")
    page.wait_for_function("scrollY < 100")
    assert page.locator("#previous").bounding_box()["y"] > -1


def test_a_number_is_that_of_the_list_which_is_seen(page, out):
    press = page.keyboard.press
    press("/")
    page.keyboard.type("sky")
    press("Enter")  # without a region
    page.wait_for_selector("#region:has-text('Select a region first')")
    assert page.locator("#classes li").count() == 3
    press("ArrowDown")
    press("1")
    page.wait_for_selector("#state:has-text('corrected')")
    assert (now(out, "sub/b")[:, 50:] == 0).all()  # the largest, which was ignored


def test_a_region_is_clicked(page, out):
    box = page.locator("#stage").bounding_box()
    scale = min(box["width"] / 80, box["height"] / 60)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.click(x + (20 - 40) * scale, y + (40 - 30) * scale)
    page.wait_for_selector("#region:has-text('Selected: dog')")
    drawn = "() => [...new Uint32Array(outline.getContext('2d').getImageData(0, 0, outline.width, "
    drawn += "outline.height).data.buffer)].filter((one, at, all) => all.indexOf(one) === at)"
    assert set(page.evaluate(drawn)) == {0, 0xFF000000, 0xFFFFFFFF}  # light within dark
    page.click("#merge")
    page.wait_for_selector("#state:has-text('corrected')")
    assert now(out, "sub/b")[40, 20] == 1
    page.click("#undo")
    page.wait_for_selector("#progress:has-text('0 of 3')")
    assert (now(out, "sub/b") == labels_of("sub/b")).all()
