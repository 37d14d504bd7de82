"""What a score means, by method and refinement, as docs/methods.md says."""

import numpy as np
import pytest
import torch

import maskclip
from maskclip.core.config import REFINEMENTS, Options
from maskclip.core.methods import METHODS, gives_probabilities
from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.scenes import draw_scene
from maskclip.tasks.photos import score_photo
from maskclip.tasks.segmenter import CLIPSegmenter

WORDS = Vocabulary.parse(["dog=dog,puppy", "grass", "sky", "wall"])
ONES = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def deep(make_model):
    """`deep(method)`: a ViT that every method reads, and one photo as it sees it."""
    clip = make_model(vision={"layers": 10, "head_width": 16}, temperature=100.0)  # 8 px a patch

    def make(method):
        return CLIPSegmenter(
            clip,
            method=METHODS[method],
            device=torch.device("cpu"),
            precision="float32",
            templates="plain",
        )

    return make


@torch.inference_mode()
def scored(segmenter, image, words=WORDS, *, window=None, **options):
    """Return the maps of all classes, (n, K, h, w), and the labels and scores."""
    options = Options(**options)
    needs = {"keys": options.key_smoothing is not None, "image": "surgery" in options.refine}
    encoded = segmenter.encode(image, short_side=0, window=window, **needs)
    scoring = segmenter.scoring(segmenter.prepare(words), options)
    found = score_photo(encoded.encoded, scoring)
    return found.maps, *found.labels(words)


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_probabilities_but_of_the_published_code(method, deep, picture):
    maps, labels, scores = scored(deep(method), picture(56, 64))
    assert set(np.unique(labels)) <= set(range(len(WORDS)))
    if gives_probabilities(method):
        torch.testing.assert_close(maps.sum(dim=1), torch.ones(1, 7, 8), **ONES)
        assert 1 / len(WORDS) - 1e-5 <= scores.min() <= scores.max() <= 1 + 1e-5
    else:  # cosines
        assert method in ("published", "baseline")
        assert -1 <= scores.min() <= scores.max() <= 1
        assert (maps.sum(dim=1) - 1).abs().max() > 0.01


STEPS = [
    *({"refine": (name,)} for name in REFINEMENTS),
    {"refine": ("surgery", "dominant", "tlp", "pamr")},
    {"key_smoothing": 1.0},
    {"prompt_denoising": 0.5},
    {"prompt_denoising": 0.5, "key_smoothing": 1.0, "refine": ("pamr",)},
    {"window": 32},
    {"window": 40, "refine": ("tlp", "pamr")},
]


@pytest.mark.parametrize("steps", STEPS, ids=str)
@pytest.mark.parametrize("method", ["clean", "naclip"])
def test_no_refinement_takes_that_from_them(method, steps, deep, picture):
    maps, _, scores = scored(deep(method), picture(56, 64), **steps)
    total = maps.sum(dim=1)
    torch.testing.assert_close(total, torch.ones_like(total), **ONES)
    assert maps.min() >= -1e-5
    assert 1 / len(WORDS) - 1e-4 <= scores.min() <= scores.max() <= 1 + 1e-5


def test_what_refines_the_published_code_leaves_what_has_no_such_meaning(deep, picture):
    segmenter, image = deep("published"), picture(56, 64)
    cosines = scored(segmenter, image)[2]
    spread = scored(segmenter, image, refine=("tlp", "pamr"))[2]
    assert abs(spread.mean() - cosines.mean()) < 0.05
    assert scored(segmenter, image, key_smoothing=1.0)[2].max() > 1  # sums, without average


def test_a_background_by_threshold_scores_the_threshold(deep, picture):
    segmenter, image = deep("clean"), picture(56, 64)
    threshold = float(np.median(scored(segmenter, image)[2]))
    _, labels, scores = scored(segmenter, image, WORDS.with_background(threshold))
    assert 0.4 < (labels == 0).mean() < 0.6
    assert np.allclose(scores[labels == 0], threshold)
    assert scores[labels > 0].min() >= threshold - 1e-6


def test_a_threshold_means_something_else_under_another_method():
    scene, words = draw_scene(0, size=128), Vocabulary.builtin("emoji")
    sure = {}
    for method in ("clean", "naclip"):
        model = maskclip.load("emoji-vit", method=method, templates="plain", device="cpu")
        sure[method] = (model.segment(scene.image, words, refine=()).scores > 0.9).mean()
    assert sure["naclip"] > sure["clean"] + 0.1  # and yet it is less often right
