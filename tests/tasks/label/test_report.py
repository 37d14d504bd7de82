import json
import os
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from maskclip.core.text import hidden_character
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats.per_photo import Overlay, Palette
from maskclip.data.formats.yolo import Yolo
from maskclip.tasks.label import ClassStats, Outcome, Task
from maskclip.tasks.label.report import write_report
from maskclip.tasks.label.statistics import LEAST_PHOTOS, find_review_flags, summarize

WORDS = Vocabulary.parse(["dog", "it's <grass>"])
DOG, GRASS = 0, 1
SETTINGS = {
    "model": "<model>",
    "method": "clean",
    "formats": ["png"],
    "cleaning": {"confidence": 0.3, "by_class": {"<grass>": 0.5}, "min_region": 9},
}


def outcome(number, *classes, name=None, error=None):
    """A photo of 10 x 20 px."""
    name = name or f"{number:02}"
    task = Task(number, Path(f"/photos/{name}.jpg"), f"{name}.jpg", name)
    return Outcome(task, 10, 20, classes, error)


def failed(number, error):
    return Outcome(outcome(number).task, error=error)


def typical(count=LEAST_PHOTOS):
    """Photos of which a fifth to a fourth is a dog, and the rest grass."""
    return [
        outcome(
            number,
            ClassStats(GRASS, 160 - number % 3 * 5, 160 - number % 3 * 5, 0.7),
            ClassStats(DOG, 40 + number % 3 * 5, 40 + number % 3 * 5, 0.8 + number % 5 * 0.01),
        )
        for number in range(count)
    ]


def reasons(photo, others):
    found = find_review_flags(photo, summarize(lambda: iter(others), WORDS).classes)
    return [(flag.label, flag.reason) for flag in found]


def test_a_summary_adds_up_photos_and_classes():
    photos = [
        outcome(1, ClassStats(DOG, 150, 100, 0.9), ClassStats(GRASS, 50, 50, 0.5)),
        outcome(2, ClassStats(DOG, 200, 150, 0.6)),
        failed(3, "x: an empty file"),
    ]
    summary = summarize(lambda: iter(photos), WORDS)
    assert (summary.done, summary.failed, summary.pixels, summary.kept) == (2, 1, 400, 300)
    assert summary.coverage == 0.75
    assert summary.score == pytest.approx((150 * 0.9 + 50 * 0.5 + 200 * 0.6) / 400)
    dog, grass = summary.classes
    assert (dog.name, dog.photos, dog.pixels, dog.kept) == ("dog", 2, 350, 250)
    assert dog.score == pytest.approx((150 * 0.9 + 200 * 0.6) / 350)
    assert (dog.coverage, grass.coverage) == (0.625, 0.125)
    assert (grass.photos, grass.typical) == (1, None)


def test_a_summary_of_nothing_is_zero():
    summary = summarize(lambda: iter([failed(1, "x: an empty file")]), WORDS)
    assert (summary.done, summary.failed, summary.coverage, summary.score) == (0, 1, 0, 0)


def test_what_is_typical_is_known_from_some_photos_on():
    assert summarize(lambda: iter(typical(LEAST_PHOTOS - 1)), WORDS).classes[DOG].typical is None
    dog = summarize(lambda: iter(typical()), WORDS).classes[DOG]
    assert dog.typical.score == pytest.approx(0.82)
    assert dog.typical.least_score == pytest.approx(0.81 - 1.5 * 0.02)
    assert dog.typical.share == pytest.approx(0.225)


def test_typical_photos_are_not_flagged():
    photos = typical()
    assert [reasons(photo, photos) for photo in photos] == [[]] * len(photos)


def test_an_unusually_low_score_is_flagged():
    photo = outcome(99, ClassStats(DOG, 50, 50, 0.6))
    assert reasons(photo, typical()) == [(DOG, "score 0.60, usually 0.82")]


def test_an_unusually_large_part_of_the_photo_is_flagged():
    photo = outcome(99, ClassStats(DOG, 150, 150, 0.82))
    assert reasons(photo, typical()) == [(DOG, "75.0 % of the photo, usually 22.5 %")]
    less_than_half = outcome(99, ClassStats(DOG, 90, 90, 0.82))
    assert reasons(less_than_half, typical()) == []


def test_a_class_of_which_most_was_dropped_is_flagged():
    photo = outcome(99, ClassStats(DOG, 50, 20, 0.82), ClassStats(GRASS, 150, 75, 0.7))
    assert reasons(photo, typical()) == [(DOG, "60.0 % of its pixels were dropped")]
    assert reasons(photo, []) == [(DOG, "60.0 % of its pixels were dropped")]


def test_small_regions_and_few_photos_are_not_flagged():
    assert reasons(outcome(99, ClassStats(DOG, 1, 0, 0.1)), typical()) == []
    assert reasons(outcome(99, ClassStats(DOG, 150, 150, 0.1)), typical(LEAST_PHOTOS - 1)) == []


def test_every_class_of_a_photo_is_flagged_once():
    photo = outcome(99, ClassStats(DOG, 120, 10, 0.1), ClassStats(GRASS, 80, 10, 0.7))
    assert [label for label, _ in reasons(photo, typical())] == [DOG, GRASS]


def test_what_was_dropped_is_of_no_photo(tmp_path):
    """One percentage for one thing: of a photo, what is labelled."""
    photo = outcome(99, ClassStats(DOG, 190, 110, 0.82))
    assert reasons(photo, typical()) == [(DOG, "55.0 % of the photo, usually 22.5 %")]
    write_report(lambda: iter([photo]), WORDS, SETTINGS, tmp_path)
    page = read(tmp_path / "report.html")
    assert page.text.count("55.0 %") == 4, "legend, total, photo and table"
    assert "95" not in page.text


def test_the_report_names_failures_flags_and_samples_and_is_the_same_again(tmp_path):
    photos = [
        *typical(30),
        outcome(98, ClassStats(DOG, 150, 30, 0.2), name="a/<b> ü"),
        failed(99, "/photos/<i>.jpg: an empty file"),
    ]
    for folder in (tmp_path, tmp_path / "again"):
        write_report(lambda: iter(photos), WORDS, SETTINGS, folder, left_out="2 left out: .heic 2")
    text, content = (
        (tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "report.json")
    )
    assert (tmp_path / "again" / "report.json").read_text(encoding="utf-8") == content
    assert "dropped under score 0.3; &lt;grass&gt; 0.5, dropped regions under 9 pixels" in text
    assert "Failed (1)" in text
    assert "<li>/photos/&lt;i&gt;.jpg: an empty file</li>" in text
    assert "Worth a look (1)" in text
    assert "<b>dog</b>: score 0.20, usually 0.82" in text
    assert 'src="thumbnails/a/%3Cb%3E%20%C3%BC.jpg"' in text
    assert "All photos (31)" in text
    assert "A selection of 12; all, page by page: <a" in text
    assert ">photos 1 to 31</a>" in text
    assert "2 left out: .heic 2" in text
    for unsafe in ("<b> ü", "<i>.jpg", "<model>", "<grass>"):
        assert unsafe not in text
    found = json.loads(content)
    assert found["summary"]["review"] == 1
    assert found["left_out"] == "2 left out: .heic 2"
    assert len(found["photos"]) == 32
    assert found["photos"][-2]["review"] == [{"class": "dog", "reason": "score 0.20, usually 0.82"}]
    assert found["photos"][-1] == {
        "photo": "99.jpg",
        "name": "99",
        "error": "/photos/<i>.jpg: an empty file",
    }


def test_the_legend_comes_first_and_names_what_is_there(tmp_path):
    words = Vocabulary.parse(["dog", "grass", "sky"])
    photo = outcome(1, ClassStats(DOG, 50, 50, 0.9), ClassStats(GRASS, 150, 150, 0.9))
    write_report(lambda: iter([photo]), words, SETTINGS, tmp_path)
    for name in ("report.html", "report/00001.html"):
        text = read(tmp_path / name).text
        first = text.index("grass")
        assert first < text.index("dog") < text.index("01.jpg")
    assert "sky" not in read(tmp_path / "report" / "00001.html").text


def test_every_photo_is_reached_and_leads_to_its_photo_and_labels(tmp_path):
    """As a browser would go: from page to page, by links relative to each."""
    photos, out = tmp_path / "my photos", tmp_path / "out"
    names = [f"a/{number:03} #1" for number in range(230)]
    outcomes = [
        replace(
            found := outcome(number, ClassStats(DOG, 200, 200, 0.9), name=name),
            task=replace(found.task, path=photos / f"{name}.jpg"),
        )
        for number, name in enumerate(names)
    ]
    made = [Palette(WORDS, out / "png"), Overlay(WORDS, out / "overlay"), Yolo(WORDS, out / "yolo")]
    for _ in range(2):
        write_report(lambda: iter(outcomes), WORDS, SETTINGS, out, formats=made)
    seen, linked, waiting = set(), set(), [out / "report.html"]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        for address in read(page).links:
            target = Path(os.path.normpath(page.parent / unquote(address.partition("#")[0])))
            if target.suffix == ".html":
                assert target.is_file() or target == page.parent
                waiting.append(target)
            linked.add(target)
    assert len(seen) == 1 + 3
    for name in names:
        assert photos / f"{name}.jpg" in linked
        assert out / "png" / f"{name}.png" in linked
        assert out / "overlay" / f"{name}_overlay.png" in linked
        assert out / "thumbnails" / f"{name}.jpg" in linked
    assert not any("yolo" in path.parts for path in linked), "no picture"
    assert max(path.stat().st_size for path in seen) < 120_000
    assert "photos 201 to 230" in read(out / "report.html").text
    write_report(lambda: iter(outcomes[:5]), WORDS, SETTINGS, out, formats=made)
    assert "A selection" not in read(out / "report.html").text
    assert [path.name for path in (out / "report").iterdir()] == ["00001.html"]


def test_hostile_names_stay_text(tmp_path):
    hostile = """<script>alert("1")</script> & 'x' {{ 7 * 7 }}"""
    words = Vocabulary.parse(["dog", hostile])
    photos = [
        outcome(1, ClassStats(GRASS, 200, 200, 0.7), name=hostile),
        outcome(2, ClassStats(GRASS, 200, 20, 0.7), name=hostile),
        failed(3, f"{hostile}: an empty file"),
    ]
    settings = {**SETTINGS, "model": hostile, "method": {"name": hostile}}
    more = {"left_out": hostile, "notes": [hostile]}
    write_report(lambda: iter(photos), words, settings, tmp_path, **more)
    for name, count in (("report.html", 15), ("report/00001.html", 6)):
        page = read(tmp_path / name)
        assert "script" not in page.tags
        assert page.text.count(hostile) == count
        assert set(page.pictures) == {f"{hostile}.jpg"}


def test_hidden_characters_are_shown_as_escapes(tmp_path):
    hidden = "esc\x1b[31m \u202egnp.exe\nx \x9b"
    photos = [outcome(1, ClassStats(DOG, 200, 20, 0.7), name=hidden), failed(2, hidden)]
    write_report(lambda: iter(photos), WORDS, SETTINGS, tmp_path, notes=[hidden])
    for name in ("report.html", "report/00001.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert r"esc\x1b[31m \u202egnp.exe\nx \x9b" in text
        assert hidden_character(text.replace("\n", "")) is None
    content = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert hidden_character(content.replace("\n", "")) is None
    assert json.loads(content)["photos"][0]["photo"] == f"{hidden}.jpg"


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


class Reader(HTMLParser):
    """Collects what a browser would show, and where it would lead."""

    def __init__(self):
        super().__init__()
        self.tags, self.pictures, self.links, self.text = set(), [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        found = dict(attributes)
        if tag == "img":
            source = unquote(found["src"]).removeprefix("../")
            assert source == f"thumbnails/{found['alt']}"
            self.pictures.append(found["alt"])
        self.links += [found[name] for name in ("href", "src") if name in found]

    def handle_data(self, data):
        if self.get_starttag_text() != "<style>":
            self.text += data
