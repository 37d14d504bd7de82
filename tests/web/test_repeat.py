"""The command and the lines of Python that a page shows give the labels that it shows."""

import shlex

import numpy as np
import pytest
from PIL import Image

import maskclip
from maskclip.cli import main
from maskclip.web.models import Models, offer
from maskclip.web.repeat import command_of, python_of
from maskclip.web.settings import Settings, read_settings

CASES = [
    {"words": "cow, grass; person=dog,cat"},
    {"words": "cow, grass, sky", "background": "0.5", "refine": "none", "method": "published"},
    {"words": "cow, it's grass", "background": "sky, wall", "key_smoothing": 1.0, "refine": "pamr"},
    {"vocabulary": "emoji", "short_side": 96, "window": 64, "stride": 32, "method": "auto"},
    {"words": "cow\ngrass", "prompt_denoising": 0.5, "background": "none", "refine": "tlp+pamr"},
    {"words": "cow, grass", "background": "-0.25", "method": "published", "refine": "none"},
]


@pytest.fixture
def shown(scene, tmp_path, monkeypatch):
    """Return what is shown for settings, of a photo that lies in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-my cow.png").write_bytes(scene[0])

    def show(given):
        choice = read_settings(given, Models(["emoji"]))
        segmenter = maskclip.load("emoji", device="cpu", method=choice.method)
        options = {
            name: getattr(choice.options, name)
            for name in (
                *("refine", "key_smoothing", "prompt_denoising"),
                *("short_side", "window", "stride"),
            )
        }
        return segmenter.segment(scene[1], choice.vocabulary, **options).labels

    return show


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_what_is_shown_is_repeated_elsewhere(shown, settings, tmp_path, capsys):
    given = Settings(**settings)
    expected = shown(given)
    command = shlex.split(command_of(given, offer("emoji"), "-my cow.png"))
    assert command[0] == "maskclip"
    assert main(command[1:]) == 0
    found = np.asarray(Image.open(tmp_path / "segmented" / "-my cow_labels.png"))
    assert np.array_equal(found, expected)
    lines = python_of(given, offer("emoji"), "-my cow.png")
    names = {}
    exec(lines, names)
    assert np.array_equal(names["found"].labels, expected)
    assert (tmp_path / "overlay.png").is_file()
