"""The page as people use it, in a browser without a window; skipped where there is no Chromium."""

import hashlib
import json
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import uvicorn

from maskclip.core.specks import specks
from maskclip.web.app import create_app
from maskclip.web.engine import Engine
from maskclip.web.models import Models
from maskclip.web.server import listen

CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if (!/, 0\\)$/.test(color)) return parse(color);
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !one.checkVisibility() || one.disabled) continue;
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(ground(one))].sort();
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.push(`${one.textContent.trim()}: ${ratio.toFixed(1)}`);
  }
  return faint;
}"""
UNNAMED = """() => [...document.querySelectorAll("button, input, select, textarea, [tabindex]")]
  .filter((one) => one.checkVisibility())
  .filter((one) => !(one.ariaLabel || one.labels?.[0]?.textContent.trim() ||
    (one.matches("button") && one.textContent.trim())))
  .map((one) => one.outerHTML)"""
DROP = """([kind, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, { type: "image/png" }));
  const how = kind === "drop" ? { dataTransfer: data } : { clipboardData: data };
  const Kind = kind === "drop" ? DragEvent : ClipboardEvent;
  document.body.dispatchEvent(new Kind(kind, { bubbles: true, cancelable: true, ...how }));
}"""


@pytest.fixture(scope="module")
def address():
    engine = Engine(Models(["emoji"], device="cpu"))
    with listen("127.0.0.1", 0) as listening:
        config = uvicorn.Config(create_app(engine), log_level="critical")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening.socket]})
        thread.start()
        yield listening.address
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def visit(browser, address):
    """`with visit(**context) as page`: the page, loaded; it asked nobody else, and had no error."""

    @contextmanager
    def visiting(path="", **context):
        there = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context})
        there.set_default_timeout(90_000)  # ms: machines may be busy
        page = there.new_page()
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address + path)
        page.wait_for_selector("html[data-ready]")
        yield page
        there.close()
        strange = [url for url in asked if not url.startswith((address, "blob:", "data:"))]
        assert (strange, errors) == ([], [])

    return visiting


def open_photo(page, scene, words="cow, grass", name="a.png"):
    page.fill("#words", words)
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": scene[0]})
    wait_for(page, *words.replace("=", ",").split(",")[:1])


def wait_for(page, *names):
    for name in names:
        page.wait_for_selector(f"#legend li:has-text('{name.strip()}')")


def until(page, condition):
    while not condition():
        page.wait_for_timeout(10)


def seen(page):
    """What is on the canvas."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    return hashlib.sha1(page.evaluate("canvas.toDataURL()").encode()).hexdigest()


def test_an_example_is_labelled_and_words_and_classes_change_what_is_seen(visit):
    with visit() as page:
        page.click("#examples button")
        wait_for(page, "cow", "grass")
        assert page.input_value("#words") == "cow, tree, grass, sky"
        first = seen(page)
        page.fill("#words", "tree, cow=cow,calf; grass")
        page.wait_for_selector("#legend li:has-text('sky')", state="detached")
        wait_for(page, "cow")
        second = seen(page)
        page.click("#legend li:has-text('cow') label")
        third = seen(page)
        page.click("button[aria-label='Heat map of cow']")
        page.wait_for_selector("#scale")
        assert len({first, second, third, seen(page)}) == 4
        assert "words=tree" in page.url
        assert "features reused" in page.inner_text("#readout")
        page.fill("#words", "cow, grass=")
        page.wait_for_selector("#words-error:has-text('grass')")


def test_own_photos_go_back_to_the_model_before_an_example(visit, scene):
    def options(route):  # a service whose first model is of photos
        found = route.fetch().json()
        drawn = {**found["models"][0], "default": False}
        found["models"] = [{**drawn, "name": "photo", "kind": "preview", "default": True}, drawn]
        route.fulfill(json=found)

    def own(name):
        photo = {"name": name, "mimeType": "image/png", "buffer": scene[0]}
        page.set_input_files("#file", photo)
        page.wait_for_selector(f"#photo-name:has-text('{name}')")
        page.wait_for_selector("#readout:has-text('back to the model photo')")
        return page.input_value("#model"), page.input_value("#words")

    def example():
        page.click("#show-examples")
        page.click("#examples button")
        page.wait_for_selector("#photo-name:has-text('scene')")
        return page.input_value("#model"), page.input_value("#words")

    with visit() as page:
        page.route("**/v1/options", options)
        page.reload()
        page.wait_for_selector("html[data-ready]")
        page.fill("#words", "cow")
        assert example() == ("emoji", "cow, tree, grass, sky")
        assert own("a.png") == ("", "cow")
        wait_for(page, "cow")
        example()
        page.fill("#words", "grass")
        assert own("b.png") == ("", "grass")  # typed since
        page.fill("#words", "cow, grass")
        page.wait_for_function("() => !readout.textContent.includes('back to')")
        example()
        page.reload()  # what was before is forgotten
        page.wait_for_selector("html[data-ready]")
        assert page.input_value("#model") == "emoji"
        assert own("c.png") == ("", "")


def test_a_draft_is_seen_until_it_is_refined_and_older_words_never_come_back(visit, scene):
    with visit() as page:
        held, sent = [], []

        def hold(route):
            sent.append(json.loads(route.request.post_data))
            if "draft" in sent[-1]:
                route.continue_()
            else:
                held.append(route)

        page.route("**/labels", hold)
        open_photo(page, scene)
        page.wait_for_selector("#draft:has-text('refining')")
        assert "refining" in page.inner_text("#readout")
        page.wait_for_selector("#command:has-text('maskclip segment')", state="attached")
        page.fill("#words", "sky, cow")
        wait_for(page, "sky")
        draft = seen(page)
        until(page, lambda: len(held) == 2)
        for one in held:  # nobody waits for the first any more, which is of older words
            one.continue_()
        page.wait_for_selector("#draft", state="hidden")
        assert "refined" in page.inner_text("#readout")
        assert seen(page) != draft
        assert page.locator("#legend li:has-text('grass')").count() == 0
        page.select_option("#refine", "none")
        page.wait_for_selector("#command:has-text('--refine none')", state="attached")
        assert ["draft" in one for one in sent] == [True, False, True, False, True]
        page.select_option("#refine", "pamr")
        until(page, lambda: len(held) == 3)
        held[-1].fulfill(status=500, json={"error": "it went wrong"})
        page.wait_for_selector("#draft:has-text('not refined')")


def test_specks_are_those_that_saved_overlays_have(visit):
    labels = np.random.default_rng(0).integers(0, 3, (40, 700), dtype=np.uint8)
    labels[:, 300:600] = labels[:, 300:600].repeat(3, axis=1)[:, :300]
    with visit() as page:
        found = page.evaluate(
            """async ([height, width, data]) => {
              const { specks } = await import("/specks.js");
              return [...specks({ width, height, data })];
            }""",
            [*labels.shape, labels.ravel().tolist()],
        )
    assert found == specks(labels).ravel().astype(int).tolist()


def test_photos_come_by_file_drop_and_paste_and_what_is_none_is_refused_in_a_line(visit, scene):
    with visit() as page:
        open_photo(page, scene, name="mine.png")
        assert "mine.png" in page.inner_text("#photo-name")
        for kind in ("drop", "paste"):
            page.evaluate(DROP, [kind, list(scene[0])])
            page.wait_for_selector(f"#photo-name:has-text('{kind}.png')")
        page.evaluate(DROP, ["drop", [1, 2, 3]])
        page.wait_for_selector("#stage-error:not(:empty)")
        assert "drop" not in page.inner_text("#photo-name")


def test_a_photo_that_is_given_while_the_page_loads_is_opened_then(visit, scene):
    with visit() as page:
        held = []
        page.route("**/v1/options", lambda route: held.append(route))
        page.reload(wait_until="commit")
        page.set_input_files(
            "#file", {"name": "a.png", "mimeType": "image/png", "buffer": scene[0]}
        )
        page.wait_for_selector("#loading:has-text('a.png')")
        page.evaluate(DROP, ["drop", list(scene[0])])
        page.wait_for_selector("#loading:has-text('drop.png')")
        held.pop().continue_()
        page.wait_for_selector("#photo-name:has-text('drop.png')")
        assert page.inner_text("#loading") == ""


BAD = [
    ("words", {"words": "cow, grass="}),
    ("background", {"words": "cow", "background": "0,5"}),
    ("window", {"words": "cow", "stride": 5}),
    ("fine", {"words": "cow", "short_side": 5000}),
    ("fine", {"words": "cow", "key_smoothing": 2}),
    ("method", {"words": "cow", "method": "xyzzy"}),
    ("refine", {"words": "cow", "refine": "xyzzy"}),
    ("model", {"words": "cow", "model": "xyzzy"}),
    ("words", "no class of ImageNet shows 'sky'; give a threshold: `background=0.5`"),
    ("words", "it has rows for its own classes alone, and none for window, model, method"),
]


def test_an_error_is_where_it_belongs_and_in_the_status_line(visit, scene):
    with visit() as page:
        open_photo(page, scene)

        def answer(route):
            sent = waiting[0]
            if isinstance(sent, str):
                route.fulfill(status=422, json={"error": sent})
            else:
                route.continue_(post_data=json.dumps(sent))

        page.route("**/labels", answer)
        for index, (place, wrong) in enumerate(BAD):
            waiting = [wrong]
            shown = page.inner_text("#readout")
            page.fill("#words", f"cow, dog {index}")
            page.wait_for_function("(old) => readout.textContent !== old", arg=shown)
            line = page.inner_text("#readout")
            filled = "[...document.querySelectorAll('.error')].filter((one) => one.textContent)"
            found = page.evaluate(f"{filled}.map((one) => [one.id, one.textContent])")
            assert found == [[f"{place}-error", line]]
            assert "background=0.5" not in line  # which is for programs


def test_controls_and_presets_change_the_labels_and_the_command_that_repeats_them(visit, scene):
    with visit() as page:
        open_photo(page, scene)
        page.wait_for_selector("#draft", state="hidden")
        pictures = [seen(page)]
        for act, option in [
            (lambda: page.select_option("#method", "baseline"), "--method baseline"),
            (lambda: page.click("#presets :text-is('paper')"), "--prompt-denoising 0.5"),
            (lambda: page.click("#presets :text-is('plain')"), "--refine none"),
            (lambda: page.select_option("#windows", "1"), "--window 224"),
            (lambda: page.select_option("#background-kind", "threshold"), "--background=0.5"),
            (lambda: page.fill("#threshold", "0.99"), "--background=0.99"),
        ]:
            shown = page.text_content("#command")
            act()
            page.wait_for_function("old => command.textContent !== old", arg=shown)
            assert option in page.text_content("#command")
            page.wait_for_selector("#draft", state="hidden")
            pictures.append(seen(page))
        assert len(set(pictures)) >= len(pictures) - 1  # every pixel may reach 0.5
        assert page.get_attribute("#presets :text-is('plain')", "aria-pressed") == "false"
        assert "background=0.99" in page.text_content("#python")


def test_opacity_zoom_and_pan_and_both_schemes_can_be_read(visit, scene):
    with visit() as page:
        open_photo(page, scene)
        page.wait_for_selector("#draft", state="hidden")
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            assert page.evaluate(CONTRAST) == []
        first = seen(page)
        page.fill("#opacity", "0.2")
        faint = seen(page)
        assert "opacity=0.2" in page.url
        page.hover("#canvas")
        page.mouse.wheel(0, -600)
        page.wait_for_function("() => document.getElementById('zoom').textContent !== '400 %'")
        zoomed = seen(page)
        page.mouse.down()
        page.mouse.move(500, 300, steps=3)
        page.mouse.up()
        moved = seen(page)
        assert len({first, faint, zoomed, moved}) == 4
        page.click("#fit")
        assert seen(page) == faint


def test_two_settings_are_compared_and_the_address_tells_them(visit, scene):
    with visit() as page:
        open_photo(page, scene)
        page.click("#compare")
        one = seen(page)
        page.click("#fine summary")
        page.select_option("#refine", "none")
        page.fill("#words", "grass, dog, cow")
        page.wait_for_url("**b.refine=none**")
        page.wait_for_selector("#absent:has-text('1 without')")
        two = seen(page)
        page.focus("#divider")
        page.keyboard.press("Home")
        assert len({one, two, seen(page)}) == 3
        assert page.get_attribute("#divider", "aria-valuenow") == "0"
        page.fill("#short_side", "5000")
        page.wait_for_selector("#fine-error:has-text('5000')")
        page.reload()  # the photo is its visitor's still
        wait_for(page, "cow")
        page.click("#legend-panel [data-side='1']")
        assert page.input_value("#words") == "grass, dog, cow"


def test_results_are_taken_along(visit, scene):
    with visit() as page:
        open_photo(page, scene)
        page.click("#legend li:has-text('grass') label")
        sizes = {}
        for what in ("labels", "overlay", "scores", "coco"):
            with page.expect_download() as waiting:
                page.click(f"[data-save='{what}']")
            sizes[waiting.value.suggested_filename] = waiting.value.path().read_bytes()
        assert set(sizes) == {"a_labels.png", "a_overlay.png", "a_scores.png", "a_coco.json"}
        assert json.loads(sizes["a_coco.json"])["images"][0]["file_name"] == "a.png"
        page.click("#compare")
        with page.expect_download() as waiting:
            page.click("[data-save='labels']")
        assert waiting.value.suggested_filename == "a_labels_B.png"
        page.click("text=Command line")
        assert "--class cow --class grass" in page.inner_text("#command")


def test_a_service_that_is_busy_or_has_let_the_photo_go_is_asked_again(visit, scene):
    with visit() as page:
        answers = [503, 404]

        def refuse(route):
            if not answers:
                route.continue_()
                return
            status = answers.pop(0)
            route.fulfill(status=status, headers={"Retry-After": "1"}, json={"error": "busy"})

        page.route("**/labels", refuse)
        open_photo(page, scene)
        assert answers == []
        assert page.inner_text("#words-error") == ""


def test_everything_can_be_done_with_a_keyboard(visit):
    with visit() as page:
        press = page.keyboard.press

        def tab_to(condition):
            for _ in range(80):
                press("Tab")
                if page.evaluate(f"document.activeElement.matches({json.dumps(condition)})"):
                    return
            raise AssertionError(f"{condition} is not reached")

        tab_to("#examples button")
        press("Enter")
        wait_for(page, "cow")
        page.focus("body")
        tab_to("#words")
        press("Control+a")
        page.keyboard.type("cow, grass")
        page.wait_for_selector("#legend li:has-text('sky')", state="detached")
        tab_to("#canvas")
        press("+")
        assert page.inner_text("#zoom") != "100 %"
        press("Shift+ArrowLeft")
        page.wait_for_selector("#readout:has-text(' at ')")
        tab_to("#legend input")
        before = seen(page)
        press("Space")
        assert seen(page) != before
        assert page.evaluate("document.activeElement.matches('#legend input:not(:checked)')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phones_in_light_and_dark(visit, scene, scheme):
    size = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    with visit(color_scheme=scheme, **size) as page:
        open_photo(page, scene, words="cow, grass, xyzzy")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.tap("#canvas")
        page.wait_for_selector("#probe:has-text('.')")
        page.tap("#fine summary")
        page.tap("#compare")
        assert page.evaluate(CONTRAST) == []
        assert page.evaluate(UNNAMED) == []
