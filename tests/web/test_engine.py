"""The thread that owns the models: batches, what is kept, what is refused, what is let go."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import maskclip
from maskclip.clip.prompts import TextRows
from maskclip.core.config import Options
from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.scenes import draw_scene
from maskclip.tasks.photo_segmenter import Segmenter
from maskclip.web import reading
from maskclip.web.engine import BusyError, Engine
from maskclip.web.kept import Kept
from maskclip.web.models import Models, default_models
from maskclip.web.reading import Question, SlowError

WORDS = Vocabulary.parse(["cow", "grass", "sky"])


def photo(seed, size=64):
    return Image.fromarray(draw_scene(seed, size=size).image)


def question(image, words=WORDS, digest=None, **fields):
    values = {"model": "emoji", "method": "clean", "options": Options(), **fields}
    return Question(
        photo=lambda: image,
        size=(image.height, image.width),
        digest=digest or str(id(image)),
        vocabulary=words,
        **values,
    )


@pytest.fixture
def start():
    engines = []

    def make(**options):
        engines.append(Engine(Models(["emoji"], device="cpu"), **options))
        return engines[-1]

    yield make
    for one in engines:
        one.stop()


@pytest.fixture
def calls(monkeypatch):
    """How many photos the network was given, each time; while `gate` is cleared it waits."""
    encode, seen, gate = Segmenter.encode, [], threading.Event()
    gate.set()

    def counted(self, images, **options):
        gate.wait(20)
        seen.append(len(images))
        return encode(self, images, **options)

    monkeypatch.setattr(Segmenter, "encode", counted)
    return seen, gate


def test_those_that_wait_together_are_one_batch(start, calls):
    seen, _ = calls
    engine = start(patience=60.0)  # or until there are eight
    images = [photo(seed) for seed in range(6)]
    asked = [engine.ask(question(image)) for image in [*images, *images[:2]]]
    found = [one.result(30).found for one in asked]
    assert seen == [6]  # of two questions of one photo, one is encoded
    alone = maskclip.load("emoji", device="cpu")
    for image, one in zip(images, found, strict=False):
        assert np.mean(one.labels == alone.segment(image, WORDS, refine=()).labels) > 0.99
    assert np.array_equal(found[1].labels, found[-1].labels)


def test_a_photo_that_fails_fails_alone(start):
    def broken():
        raise MaskCLIPError("no photo")

    engine = start(patience=0.2)
    good = engine.ask(question(photo(1)))
    bad = engine.ask(replace(question(photo(2)), photo=broken))
    assert good.result(30).found.labels.shape == (64, 64)
    with pytest.raises(MaskCLIPError, match="no photo"):
        bad.result(30)


def test_other_words_refinements_and_backgrounds_are_scored_from_what_is_kept(start, calls):
    seen, _ = calls
    engine, image = start(), photo(3)
    alone = maskclip.load("emoji", device="cpu")
    for words in (WORDS, Vocabulary.parse(["dog", "cow=bear,cat"]), WORDS.with_background(0.6)):
        for refine in ((), ("tlp", "pamr")):
            asked = question(image, words, options=Options(refine=refine))
            found = engine.ask(asked).result(30).found
            expected = alone.segment(image, words, refine=refine)
            assert np.array_equal(found.labels, expected.labels)
            assert np.array_equal(found.scores, expected.scores)
    assert seen == [1]
    assert engine.held > 0
    engine.ask(question(image, options=Options(short_side=96))).result(30)
    engine.ask(question(image, options=Options(key_smoothing=1.0))).result(30)
    assert seen == [1, 1, 1]
    engine.forget(str(id(image)))
    assert engine.held == 0


def test_labels_of_a_smaller_picture_are_those_of_the_same_features(start):
    engine, image = start(), photo(4, size=128)
    small = image.resize((32, 32))
    answer = engine.ask(question(image, shown=small, heat=1)).result(30)
    assert answer.found.labels.shape == answer.heat.shape == (32, 32)
    full = engine.ask(question(image)).result(30)
    assert full.kept
    assert np.mean(full.found.labels[2::4, 2::4] == answer.found.labels) > 0.9


@pytest.mark.parametrize("method", ["clean", "published", "baseline"])
@pytest.mark.parametrize("background", [None, 0.4, ["sky"]])
def test_a_heat_map_is_what_the_labels_are_made_of(start, method, background):
    words = Vocabulary.parse(["cow", "grass"]).with_background(background)
    engine, image = start(), photo(5)
    maps = [
        engine.ask(question(image, words, method=method, heat=label)).result(30).heat
        for label in range(len(words))
    ]
    labels = engine.ask(question(image, words, method=method)).result(30).found.labels
    assert np.mean(np.argmax(maps, axis=0) == labels) > 0.99
    with pytest.raises(MaskCLIPError, match="no class 9: there are 0 to"):
        engine.ask(question(image, words, heat=9)).result(30)


def test_a_full_queue_is_busy_and_a_long_wait_is_told(start, calls):
    _, gate = calls
    engine = start(queue_size=2, timeout=2.0, patience=0.0)
    engine.ask(question(photo(6))).result(30)  # the model is loaded
    gate.clear()
    running = engine.ask(question(photo(7)))
    while engine.waiting:
        time.sleep(0.005)
    waiting = [engine.ask(question(photo(8))) for _ in range(2)]
    with pytest.raises(BusyError):
        engine.ask(question(photo(9)))
    assert waiting[0].cancel()  # who waits no more is not answered
    time.sleep(2.1)
    gate.set()
    assert running.result(30).found.labels.shape == (64, 64)
    with pytest.raises(SlowError):
        waiting[1].result(30)
    engine.stop()
    with pytest.raises(BusyError, match="stopping"):
        engine.ask(question(photo(8)))


def test_a_visitor_with_many_questions_keeps_no_other_waiting(start, calls):
    _, gate = calls
    engine = start(queue_size=16, patience=0.0)
    engine.ask(question(photo(6))).result(30)  # the model is loaded
    gate.clear()
    first, done = engine.ask(question(photo(6, size=32))), []
    while engine.waiting:
        time.sleep(0.005)
    many = [engine.ask(question(photo(6, size=32), visitor="many")) for _ in range(12)]
    with pytest.raises(BusyError):
        engine.ask(question(photo(6, size=32), visitor="many"))
    other = engine.ask(question(photo(6, size=32), visitor="other"))
    for name, one in [("many", many[-1]), ("other", other)]:
        one.add_done_callback(lambda _, name=name: done.append(name))
    gate.set()
    assert all(one.result(30).found for one in (first, other, *many))
    assert done == ["other", "many"]


def test_what_waits_is_answered_when_the_engine_stops(start, calls):
    _, gate = calls
    engine = start()
    gate.clear()
    asked = [engine.ask(question(photo(seed))) for seed in range(3)]
    threading.Timer(0.1, gate.set).start()
    engine.stop()
    assert all(one.result(0).found for one in asked)


def test_an_error_of_the_thread_ends_nobody_elses_wait(start, monkeypatch):
    engine = start()
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_encode", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.ask(question(photo(1))).result(30)
    assert engine.ask(question(photo(1))).result(30).found


def test_words_that_are_unknown_are_noted_each_time(start):
    engine = start()
    for words in ("xylophone", "grass", "xylophone"):
        asked = question(photo(1), Vocabulary.parse(["cow", words]))
        notes = engine.ask(asked).result(30).notes
        assert len(notes) == (words == "xylophone")


def test_words_that_take_too_long_are_kept_as_far_as_they_came(start, monkeypatch):
    engine = start(timeout=3.0)
    engine.ask(question(photo(1))).result(30)  # the model is loaded
    done = []

    def slow(clip, names, **_):
        done.extend(names)
        time.sleep(0.2)
        return TextRows(torch.empty(0), ())

    monkeypatch.setattr(reading, "text_rows", slow)
    words = Vocabulary.parse([f"word {index}" for index in range(100)])
    with pytest.raises(SlowError):
        engine.ask(question(photo(1), words)).result(30)
    assert 0 < len(done) < 100


def test_what_would_take_gigabytes_is_refused(start):
    engine = start()
    tall = Image.new("RGB", (20, 80))
    for options in (
        Options(short_side=2048, window=32, stride=1),
        Options(short_side=2048),
    ):
        with pytest.raises(MaskCLIPError, match="the model would see"):
            engine.ask(question(tall, options=options)).result(30)
    many = Vocabulary.parse([f"word {index}" for index in range(40)])
    options = Options(short_side=2048, refine=("pamr",))
    with pytest.raises(MaskCLIPError, match="too much to refine"):
        engine.ask(question(Image.new("RGB", (20, 20)), many, options=options)).result(30)


def test_what_is_kept_is_bounded_in_bytes_and_in_time():
    now = [0.0]
    kept = Kept(10, 5.0, clock=lambda: now[0])
    kept.put("a", 1, 4)
    kept.put("b", 2, 4)
    now[0] = 3.0
    assert kept.get("a") == 1
    kept.put("c", 3, 4)  # b is the longest unused
    assert kept.keys() == ["a", "c"]
    assert kept.held == 8
    kept.put("d", 4, 11)  # larger than all may be
    assert kept.get("d") is None
    now[0] = 8.5
    assert kept.held == 0
    assert not kept.remove("a")


def test_who_keeps_most_makes_room():
    kept = Kept(100, 10.0)
    kept.put("small", 0, 20, "a")
    for name in ("one", "two", "three"):
        kept.put(name, 0, 25, "b")
    kept.put("new", 0, 30, "c")
    assert kept.keys() == ["small", "two", "three", "new"]
    kept.put("four", 0, 25, "b")
    assert (kept.keys(), kept.held) == (["small", "three", "new", "four"], 100)
    kept.put("all", 0, 100, "c")
    assert (kept.keys(), kept.held) == (["all"], 100)


def test_without_other_weights_the_embedded_models_are_offered():
    assert "emoji" in default_models()
    assert "ViT-B-16:openai" not in default_models()


def test_models_are_found_by_name_and_others_are_refused():
    with pytest.raises(MaskCLIPError, match="two models of one name"):
        Models(["emoji", "emoji"])
    models = Models(["emoji", "emoji-vit"])
    assert models.find(None).name == "emoji"
    with pytest.raises(MaskCLIPError, match=r"no model 'emojy' here \(did you mean emoji"):
        models.find("emojy")
