from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from maskclip.core.config import ModelConfig, Options
from maskclip.core.dense import score
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import BASELINE, CLEAN, PUBLISHED
from maskclip.core.methods import METHODS
from maskclip.core.resize import cut, fit_within
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.specs import SPECS
from maskclip.emoji.scenes import EmojiScenes
from maskclip.recipes import RECIPES
from maskclip.tasks.evaluation.predictors import ZeroShotPredictor, count_prompts, load_predictor
from maskclip.tasks.evaluation.settings import (
    PROTOCOLS,
    Evaluation,
    default_templates,
    method_under,
    options_under,
    protocol_notes,
    vocabulary_under,
)
from maskclip.tasks.segmenter import CLIPSegmenter


def samples_of(name):
    spec = SPECS[name]
    return EmojiScenes(name=name, scale=spec.scale, windows_short=spec.windows_short)


def seen(size, options):
    """The size at which the network sees an image, and its windows."""
    size = fit_within(size, short=options.short_side, long=options.long_side)
    return size, cut(size, window=options.window, stride=options.stride)


def test_segment_changes_nothing():
    options = Options(short_side=300, window=200, key_smoothing=1)
    assert options_under("segment", options, samples_of("voc20"), CLEAN) == options
    assert method_under("segment", CLEAN, "voc20") is CLEAN


@pytest.mark.parametrize(("name", "what"), [("published", "maps"), ("windows", "prompts")])
def test_the_fields_protocols_enlarge_maps_in_two_resizes(name, what):
    method = method_under(name, CLEAN, "voc20")
    assert (method.upsample, method.resizes) == (what, 2)
    assert method_under("published", PUBLISHED, "voc20") == PUBLISHED


@pytest.mark.parametrize(
    ("dataset", "image", "expected"),
    [  # published code, S3
        ("voc20", (375, 500), (512, 683)),
        ("voc20", (500, 375), (683, 512)),
        ("cocostuff171", (100, 1000), (205, 2048)),
        ("context59", (375, 500), (390, 520)),
        ("context59", (500, 333), (520, 346)),
        ("cityscapes19", (1024, 2048), (1024, 2048)),
    ],
)
def test_published_test_sizes(dataset, image, expected):
    options = options_under("published", Options(key_smoothing=0.5), samples_of(dataset), CLEAN)
    assert options.key_smoothing == 0.5
    size, windows = seen(image, options)
    assert size == expected
    assert len(windows) == 1


@pytest.mark.parametrize(
    ("dataset", "image", "expected", "count"),
    [
        ("voc20", (375, 500), (336, 448), 2 * 3),
        ("cityscapes19", (1024, 2048), (560, 1120), 4 * 9),
    ],
)
def test_windows_of_the_later_literature(dataset, image, expected, count):
    options = options_under("windows", Options(), samples_of(dataset), CLEAN)
    size, windows = seen(image, options)
    assert size == expected
    assert len(windows) == count
    assert all(len(axis) == 224 for window in windows for axis in window)
    assert sorted({rows.start for rows, _ in windows})[:2] == [0, 112]


@pytest.mark.parametrize("field", ["short_side", "window"])
@pytest.mark.parametrize("name", ["published", "windows"])
def test_sizes_are_the_protocols_own(name, field):
    with pytest.raises(MaskCLIPError, match=f"leave {field} out"):
        options_under(name, Options(**{field: 100}), samples_of("voc20"), CLEAN)


def test_an_unknown_protocol_names_those_that_there_are():
    with pytest.raises(MaskCLIPError, match="unknown protocol 'x': expected one of segment, "):
        method_under("x", CLEAN, "voc20")
    assert set(PROTOCOLS) == {"segment", "published", "windows"}


@torch.inference_mode()
@pytest.mark.parametrize("family", ["vit", "resnet"])
@pytest.mark.parametrize("refinement", [{}, {"key_smoothing": 1.0, "prompt_denoising": 0.3}])
def test_windows_are_labelled_as_the_later_literature_does(family, refinement, make_model, picture):
    """Written out plainly: each window's maps at its size, averaged, resized, best class."""
    words = Vocabulary.parse(["dog", "red car", "grass", "sky"])
    samples = EmojiScenes(vocabulary=words, windows_short=240)
    segmenter = CLIPSegmenter(
        make_model(family),
        method=method_under("windows", PUBLISHED, "emoji"),
        device=torch.device("cpu"),
        precision="float32",
        templates="plain",
    )
    photo = picture(240, 300)
    options = options_under("windows", Options(**refinement), samples, PUBLISHED)
    found = ZeroShotPredictor(segmenter, words, options, "windows")("name", Image.fromarray(photo))

    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None]
    total, count = torch.zeros(1, 4, 240, 300), torch.zeros(240, 300)
    for top in (0, 16):  # the last window is moved back to the border
        for left in (0, 76):
            part = (slice(top, top + 224), slice(left, left + 224))
            dense = segmenter.encoder.encode(pixels[:, :, *part], keys=True)
            maps = score(dense, segmenter.scoring(words, Options(**refinement)))
            total[:, :, *part] += F.interpolate(maps, size=(224, 224), mode="bilinear")
            count[part] += 1
    maps = F.interpolate(total / count, size=(240, 300), mode="bilinear")[0]
    best = maps.amax(dim=0)
    chosen = maps.gather(0, torch.from_numpy(found.astype(np.int64))[None])[0]
    torch.testing.assert_close(chosen, best, rtol=1e-4, atol=1e-4)
    assert (maps.argmax(dim=0).numpy() == found).mean() > 0.999


PLAIN = ("voc20", "context59", "cocostuff171", "cityscapes19", "ade150")


def in_words_of(name):
    spec = SPECS[name]
    words = Vocabulary.builtin(name)
    return EmojiScenes(name=name, vocabulary=words, windows_short=spec.windows_short)


def under(name, dataset):
    return method_under("windows", METHODS[name], dataset)


@pytest.mark.parametrize(
    ("names", "dataset", "scale", "threshold", "area"),
    [
        (["sclip"], "voc21", 65, 0.1, 0.1),
        (["sclip"], "context60", 50, 0.1, 0),
        (["sclip"], "cocoobject81", 50, 0.1, 0),
        (["naclip", "pearl", "resclip-rcs", "clean", "gem", "surgery"], "voc21", 40, 0.1, 0),
        (["naclip", "pearl", "resclip-rcs", "clean", "baseline"], "context60", 40, 0.1, 0),
        (["naclip", "pearl", "resclip-rcs", "published"], "cocoobject81", 40, 0.1, 0),
        (["scclip", "sfp"], "voc21", 50, 0.15, 0.1),
        (["scclip", "sfp"], "context60", 40, 0.15, 0),
        (["scclip", "sfp"], "cocoobject81", 55, 0.35, 0),
        (["clearclip"], "voc20", 50, 0, 0),
        *(
            (["sclip", "naclip", "pearl", "scclip", "sfp", "clean"], dataset, 40, 0, 0)
            for dataset in PLAIN
        ),
    ],
)
def test_scales_and_thresholds_by_method_and_data_set(names, dataset, scale, threshold, area):
    for name in names:
        method = under(name, dataset)
        assert (method.upsample, method.resizes) == ("prompts", 2)
        assert method.temperature == scale
        assert (method.probability_threshold, method.area_threshold) == (threshold, area)


def test_naclip_pearl_and_resclip_see_voc_whole():
    for name in METHODS:
        for dataset in SPECS:
            options = options_under("windows", Options(), in_words_of(dataset), METHODS[name])
            whole = name in ("naclip", "pearl", "resclip", "resclip-rcs") and "voc" in dataset
            expected = (None, None) if whole else (224, 112)
            assert (options.window, options.stride) == expected
            assert options.short_side == (560 if dataset == "cityscapes19" else 336)


def test_positions_are_resized_as_in_the_code_of_each():
    for name, method in METHODS.items():
        own = name in ("clean", "published", "gem", "surgery")
        expected = (method.position_resize, method.position_filter) if own else ("count", "offset")
        found = under(name, "voc20")
        assert (found.position_resize, found.position_filter) == expected, name


def test_resclip_has_values_of_its_own_on_every_data_set():
    voc, ade = under("resclip", "voc21"), under("resclip", "ade150")
    assert (voc.kernels[0][1], voc.middle.weight) == pytest.approx((1.4, 0.6))
    assert (voc.feedback.logits, voc.feedback.weight) == pytest.approx((0.66, 1.54))
    assert (voc.feedback.threshold, ade.feedback.threshold) == (0.5, 0.25)
    usual = METHODS["resclip"]
    for dataset in (*SPECS, "mine"):
        found = under("resclip", dataset)
        assert (found.feedback.unsure, found.feedback.whole_lines) == ("first", False)
        plain = dataset in ("voc20", "mine")
        assert (found.kernels == usual.kernels) == plain
        assert (found.feedback.logits == pytest.approx(usual.feedback.logits)) == (
            plain or dataset == "cityscapes19"
        )


def test_clip_itself_is_run_without_the_accidents_of_maskclips_code():
    method = under("baseline", "voc20")
    assert (method.activation, method.mean, method.layer_norm_eps) == ("model", None, None)
    assert (method.kernels, method.residual, method.mlp) == (BASELINE.kernels, True, True)
    assert under("published", "voc20").mean == PUBLISHED.mean


def test_the_first_pass_of_resclip_is_the_same_alone():
    for dataset in SPECS:
        whole, first = under("resclip", dataset), under("resclip-rcs", dataset)
        assert (first.kernels, first.middle, first.feedback) == (whole.kernels, whole.middle, None)


def test_a_method_of_ones_own_takes_the_common_settings_but_keeps_its_own_values():
    mine = replace(METHODS["sclip"], name="mine")
    method = method_under("windows", mine, "voc21")
    assert (method.temperature, method.probability_threshold) == (40, 0.1)
    assert method.position_filter == "bicubic"
    # A file may be called as a method is.
    assert method_under("windows", replace(mine, name="sclip", window=3), "voc21").temperature == 40
    own = replace(mine, temperature=30.0, upsample="prompts", probability_threshold=0.3)
    method = method_under("windows", own, "voc21")
    assert (method.temperature, method.probability_threshold) == (30, 0.3)


def test_words_are_those_of_sclip_and_names_stay():
    for name, spec in SPECS.items():
        samples = in_words_of(spec.name)
        words = vocabulary_under("windows", samples)
        assert words.names == samples.vocabulary.names
        assert words.prompts == Vocabulary.builtin(f"{name}-sclip").prompts
        assert vocabulary_under("published", samples) == samples.vocabulary
    mine = EmojiScenes(name="voc20", vocabulary=Vocabulary.parse(["dog", "cat"]))
    assert vocabulary_under("windows", mine) == mine.vocabulary


@pytest.mark.filterwarnings("ignore::maskclip.core.errors.MaskCLIPWarning")
def test_words_are_encoded_once_for_all_methods_refinements_and_recipes():
    recipe = RECIPES["cityscapes19-naclip-pamr-vitb16"].evaluation
    recipe = replace(recipe, model=replace(recipe.model, name="emoji-vit"))
    model = ModelConfig(name="emoji-vit", method="clearclip", templates="open_clip")
    typed = Evaluation(dataset="cityscapes19", model=model, protocol="windows")
    samples, told = in_words_of("cityscapes19"), []
    assert count_prompts(typed, samples) == count_prompts(recipe, samples) == (19, 80)
    assert count_prompts(typed, in_words_of("voc21")) == (56, 80)
    for evaluation in (typed, recipe):
        load_predictor(evaluation, samples, device="cpu", on_word=lambda *word: told.append(word))
    assert told == [(done, 19) for done in range(1, 20)]


def test_a_background_that_is_given_replaces_the_protocols():
    words = vocabulary_under("windows", in_words_of("voc21"), ["snow"])
    assert words.prompts[:2] == (("snow",), ("aeroplane",))
    assert vocabulary_under("windows", in_words_of("voc21"), 0.3).threshold == 0.3
    with pytest.raises(MaskCLIPError, match="voc20 has no background class"):
        vocabulary_under("windows", in_words_of("voc20"), ["snow"])


def test_ones_own_classes_get_a_background_in_their_file():
    own = replace(in_words_of("voc20"), name="folder")
    with pytest.raises(MaskCLIPError, match="write it in the class file"):
        vocabulary_under("segment", own, 0.5)


def test_what_is_given_and_differs_is_noted():
    def notes(method="naclip", templates="open_clip", protocol="windows", **given):
        model = ModelConfig(method=method, templates=templates)
        return protocol_notes(Evaluation(dataset="voc21", model=model, protocol=protocol, **given))

    assert default_templates("windows") == "open_clip"
    assert notes() == {"settings_of": "NACLIP", "differs_from_protocol": ()}
    assert notes("scclip")["settings_of"] == "SC-CLIP"
    assert notes("clean")["settings_of"] == "common"
    assert notes(protocol="published") == {}
    assert not notes(options=Options(refine=("pamr",)))["differs_from_protocol"]
    model = ModelConfig(templates="open_clip", proxy="vit_small_patch14_dinov2:random")
    found = protocol_notes(Evaluation(dataset="voc21", model=model, protocol="windows"))
    assert found["differs_from_protocol"] == ("the proxy vit_small_patch14_dinov2:random",)
    found = notes(
        templates="plain",
        background=["snow"],
        options=Options(refine=("tlp", "pamr"), refine_size=300, regions="slic", key_smoothing=1.0),
    )["differs_from_protocol"]
    assert found == (
        "templates plain (its own are open_clip)",
        "another background",
        "key smoothing",
        "refinement by tlp",
        "segments that vote",
        "refinement at another size than the photo's own",
    )


def test_clean_has_nothing_of_a_protocol():
    assert (CLEAN.probability_threshold, CLEAN.area_threshold) == (0, 0)
