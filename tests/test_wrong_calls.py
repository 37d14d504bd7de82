"""What cannot be used raises `MaskCLIPError`, in one line, wherever the public names take it."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import maskclip
from maskclip import METHODS, Client, MaskCLIPError, ModelConfig, Options, Segmentation, Vocabulary

WORDS = Vocabulary.parse(["dog", "grass"])
LABELS, SCORES = np.zeros((8, 8), np.uint8), np.ones((8, 8), np.float32)
FOUND = Segmentation(LABELS, SCORES, WORDS, Image.new("RGB", (8, 8)))
CLIENT = Client("http://127.0.0.1:9")
CLEAN = METHODS["clean"]
PHOTO = np.zeros((32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return maskclip.load("emoji", device="cpu")


@pytest.fixture(scope="module")
def encoded(model):
    return model.encode(PHOTO)


VALUES = {
    "a list as labels": lambda: Segmentation([[0]], SCORES, WORDS),
    "a list as scores": lambda: Segmentation(LABELS, [[1.0]], WORDS),
    "a list as vocabulary": lambda: Segmentation(LABELS, SCORES, ["dog", "grass"]),
    "an array as image": lambda: Segmentation(LABELS, SCORES, WORDS, PHOTO),
    "labels of floats": lambda: Segmentation(SCORES, SCORES, WORDS),
    "opacity as text": lambda: FOUND.overlay(opacity="a"),
    "opacity None": lambda: FOUND.overlay(opacity=None, legend=False),
    "opacity NaN": lambda: FOUND.overlay(opacity=float("nan")),
    "an overlay of a path": lambda: FOUND.overlay("photo.jpg"),
    "no path of labels": lambda: FOUND.save_png(None),
    "an empty path of labels": lambda: FOUND.save_png(""),
    "no path of scores": lambda: FOUND.save_scores(5),
    "regions of one number": lambda: FOUND.voted(5),
    "regions of names": lambda: FOUND.voted(np.full((8, 8), "a")),
    "no list of names": lambda: Vocabulary.parse(5),
    "no names in the list": lambda: Vocabulary.parse([None]),
    "one string": lambda: Vocabulary.parse("dog"),
    "a dictionary of numbers": lambda: Vocabulary.parse({"dog": 5}),
    "colours that are a number": lambda: Vocabulary.parse(["a"], colors=5),
    "colours that are a text": lambda: Vocabulary.parse(["a"], colors="red"),
    "prompts that are a number": lambda: Vocabulary(("a",), 5, ((0, 0, 0),)),
    "fields that are numbers": lambda: Vocabulary(("a",), (("a",),), 5),
    "a threshold as text": lambda: replace(WORDS, threshold="a"),
    "a confidence that is a number": lambda: replace(WORDS, confidence=5),
    "a missing file of classes": lambda: Vocabulary.from_file("no.txt"),
    "no file of classes": lambda: Vocabulary.from_file(None),
    "an empty name of a file": lambda: Vocabulary.from_file(""),
    "a zero byte in a file's name": lambda: Vocabulary.from_file("a\0b.txt"),
    "a built-in set by number": lambda: Vocabulary.builtin(5),
    "a built-in set by list": lambda: Vocabulary.builtin([]),
    "no description": lambda: Vocabulary.from_dict(5),
    "a text of numbers": lambda: WORDS.to_toml(5),
    "confidences that are a number": lambda: WORDS.with_confidence(5),
    "confidences that are a list": lambda: WORDS.with_confidence(["dog"]),
    "a confidence as text": lambda: WORDS.with_confidence({"dog": "a"}),
    "a background of an object": lambda: WORDS.with_background(object()),
    "a background of numbers": lambda: WORDS.with_background([5]),
    "a method by number": lambda: ModelConfig(method=5),
    "a missing file of a method": lambda: ModelConfig(method="no.toml"),
    "a model by number": lambda: ModelConfig(name=5),
    "a method's number as text": lambda: replace(CLEAN, window="a"),
    "a method's kernels by number": lambda: replace(CLEAN, kernels=5),
    "a method's kernels by name": lambda: replace(CLEAN, kernels="qq"),
    "a method's choice": lambda: replace(CLEAN, upsample="nothing"),
    "a method's blocks as text": lambda: replace(CLEAN, blocks="a"),
    "a method's part": lambda: replace(CLEAN, middle=5),
    "a part's number as text": lambda: replace(CLEAN.alignment, centered_keys="a"),
    "a refinement by number": lambda: Options(refine=5),
    "a side as text": lambda: Options(short_side="a"),
    "a threshold of keys as text": lambda: Options(key_smoothing="a"),
    "no address": lambda: Client(None),
    "an address by number": lambda: Client(5),
    "half an address": lambda: Client("http://[::bad"),
    "an address without a host": lambda: Client("http://"),
    "an address with a port in words": lambda: Client("http://host:port"),
    "a key by number": lambda: Client(key=5),
    "a timeout as text": lambda: Client(timeout="a"),
    "a timeout of no time": lambda: Client(timeout=0),
    "no photo for a service": lambda: CLIENT.segment(None, ["dog"]),
    "a number for a service": lambda: CLIENT.segment(5, ["dog"]),
    "floats for a service": lambda: CLIENT.segment(SCORES[..., None], ["dog"]),
    "a photo of a service with a zero byte": lambda: CLIENT.segment("a\0b", ["dog"]),
    "words of a service by number": lambda: CLIENT.segment(PHOTO, 5),
    "numbers as words of a service": lambda: CLIENT.segment(PHOTO, [5]),
    "a service that is not there": lambda: CLIENT.segment(PHOTO, ["dog"]),
    "no model": lambda: maskclip.load(None),
    "a model's options": lambda: maskclip.load("emoji", options=5),
    "a device by number": lambda: maskclip.load("emoji", device=5),
    "a runtime by number": lambda: maskclip.load("emoji", runtime=5),
    "a precision by number": lambda: maskclip.load("emoji", precision=5),
    "an unknown setting": lambda: maskclip.load("emoji", metod="clean"),
}


def refused(call):
    with pytest.raises(MaskCLIPError) as caught:
        call()
    text = str(caught.value)
    assert text
    assert "\n" not in text
    assert len(text) < 500
    return caught.value


@pytest.mark.parametrize("call", VALUES.values(), ids=list(VALUES))
def test_a_value_that_cannot_be_used_is_refused(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(call)
    assert list(tmp_path.iterdir()) == []


WITH_A_MODEL = {
    "a map by number": lambda model, encoded: model.heat(encoded, 0, WORDS),
    "a map of nothing": lambda model, encoded: model.heat(encoded, None, WORDS),
    "a map of another class": lambda model, encoded: model.heat(encoded, "gras", WORDS),
    "a map of a photo": lambda model, encoded: model.heat(PHOTO, "dog", WORDS),
    "scores of a photo": lambda model, encoded: model.score(PHOTO, WORDS),
    "scores of nothing": lambda model, encoded: model.score(None, WORDS),
    "classes by number": lambda model, encoded: model.score(encoded, 5),
    "no classes": lambda model, encoded: model.segment(PHOTO),
    "one string": lambda model, encoded: model.segment(PHOTO, "dog"),
    "a photo by number": lambda model, encoded: model.segment(5, WORDS),
    "no photo": lambda model, encoded: model.segment(None, WORDS),
    "no photo in a list": lambda model, encoded: model.segment([None], WORDS),
    "a missing photo": lambda model, encoded: model.segment("no.jpg", WORDS),
    "floats as a photo": lambda model, encoded: model.segment(SCORES, WORDS),
    "a background of an object": lambda model, encoded: model.segment(
        PHOTO, WORDS, background=object()
    ),
    "an unknown option": lambda model, encoded: model.segment(PHOTO, WORDS, refin="pamr"),
    "a side as text": lambda model, encoded: model.encode(PHOTO, short_side="a"),
    "options by number": lambda model, encoded: model.prepare(["dog"], options=5),
    "options as a dictionary": lambda model, encoded: model.prepare(["dog"], options={}),
}


@pytest.mark.parametrize("call", WITH_A_MODEL.values(), ids=list(WITH_A_MODEL))
def test_a_model_refuses_what_it_cannot_use(call, model, encoded):
    refused(lambda: call(model, encoded))


def test_a_missing_file_of_classes_is_a_missing_file_too():
    error = refused(lambda: Vocabulary.from_file("nowhere.txt"))
    assert isinstance(error, FileNotFoundError)
    assert str(error) == "no such file: nowhere.txt (expected a file of classes)"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))


def test_every_segmenter_refuses_options_that_are_none():
    preview = maskclip.load("photo", device="cpu")
    refused(lambda: preview.prepare(["dog", "cat"], options=5))
