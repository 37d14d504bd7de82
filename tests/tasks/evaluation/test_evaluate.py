import math
import threading
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from maskclip.core.config import ModelConfig, Options
from maskclip.core.errors import MaskCLIPError
from maskclip.core.samples import Sample, Samples
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.corruptions import Corruption
from maskclip.emoji.scenes import EVALUATION_SEEDS, EmojiScenes, draw_scene
from maskclip.tasks.evaluation.evaluate import ProcessGroup, evaluate
from maskclip.tasks.evaluation.examples import EXAMPLES
from maskclip.tasks.evaluation.predictors import load_predictor
from maskclip.tasks.evaluation.results import headline
from maskclip.tasks.evaluation.settings import Evaluation, Run

EMOJI = ModelConfig(name="emoji", templates="plain", precision="float32")
WORDS = Vocabulary.parse(["dog", "cat", "grass", "nowhere"])


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawn(Samples):
    """Truths that are given; an image holds its truth in grey levels, 255 for no label."""

    truths: tuple

    @property
    def names(self):
        return [f"image{index}" for index in range(len(self.truths))]

    def __getitem__(self, index):
        truth = np.asarray(self.truths[index])
        gray = Image.fromarray(truth.astype(np.uint8)).convert("RGB")
        return Sample(self.names[index], gray, truth)


def drawn(*truths, **fields):
    return Drawn(name="drawn", split="val", vocabulary=WORDS, truths=truths, **fields)


class Oracle:
    """Reads the truth from the image, and calls some classes by another name."""

    def __init__(self, **changes):
        self.changes = changes
        self.seen = []

    def __call__(self, name, image):
        self.seen.append(name)
        ids = np.asarray(image.convert("L")).astype(np.int64)
        for old, new in self.changes.get(name, {}).items():
            ids = np.where(ids == old, new, ids)
        return ids

    def metadata(self):
        return {"model": "oracle", "protocol": None}


TRUTHS = ([[0, 0, 1], [2, 2, 255]], [[0, 1, 1]], [[2]])


def test_the_truth_scores_100_and_absent_classes_are_null_not_nan():
    result = evaluate(Oracle(), drawn(*TRUTHS), Run()).to_dict()
    assert result["iou"] == {"dog": 100, "cat": 100, "grass": 100, "nowhere": None}
    assert result["accuracy"]["nowhere"] is None
    assert (result["miou"], result["pixel_accuracy"]) == (100, 100)
    assert result["frequency_weighted_iou"] == 100
    assert result["zero_shot"] is None
    assert (result["dataset"], result["split"], result["images"]) == ("drawn", "val", 3)
    assert {"maskclip", "torch"} <= set(result["versions"])


def test_mistakes_are_counted_over_all_images_together():
    result = evaluate(Oracle(image0={1: 0}), drawn(*TRUTHS, unseen=(1,)), Run()).to_dict()
    # dog: 3 right, 1 more called so; cat: 2 of 3 found.
    assert result["iou"]["dog"] == pytest.approx(100 * 3 / 4)
    assert result["iou"]["cat"] == pytest.approx(100 * 2 / 3)
    assert result["zero_shot"]["unseen"] == pytest.approx(100 * 2 / 3)
    assert result["zero_shot"]["seen"] == pytest.approx(100 * (3 / 4 + 1) / 2)


def test_a_limit_takes_the_first_images():
    oracle = Oracle()
    result = evaluate(oracle, drawn(*TRUTHS, official=7), Run(limit=2))
    assert oracle.seen == ["image0", "image1"]
    assert result.metadata["images"] == 2
    assert "2 of 7 images" in headline(result.metadata)
    assert evaluate(Oracle(), drawn(*TRUTHS), Run(limit=99)).metadata["images"] == 3


def test_nothing_labelled_is_null():
    result = evaluate(Oracle(), drawn([[255, 255]]), Run()).to_dict()
    assert result["miou"] is None
    assert result["pixel_accuracy"] is None


def test_best_and_worst_do_not_overlap_nor_depend_on_the_order():
    truths = [[[0] * 20] for _ in range(20)]

    class Wrong(Oracle):
        def __call__(self, name, image):
            wrong = int(name.removeprefix("image"))
            return np.array([[1] * wrong + [0] * (20 - wrong)])

    result = evaluate(Wrong(), drawn(*truths), Run())
    assert [one.name for one in result.best] == [f"image{i}" for i in range(EXAMPLES)]
    assert [one.name for one in result.worst] == [f"image{19 - i}" for i in range(EXAMPLES)]
    few = evaluate(Wrong(), drawn(*truths[:8]), Run())
    assert len(few.best) == 6
    assert [one.name for one in few.worst] == ["image7", "image6"]  # none is both


def test_an_image_without_labels_is_no_example():
    result = evaluate(Oracle(), drawn([[255]], [[1]]), Run())
    assert [one.name for one in result.best] == ["image1"]


def test_an_unusable_sample_ends_the_evaluation_with_its_own_message():
    class Broken(Drawn):
        def __getitem__(self, index):
            if index == 1:
                raise MaskCLIPError("image1: no such file")
            return super().__getitem__(index)

    samples = Broken(name="drawn", split="val", vocabulary=WORDS, truths=TRUTHS)
    with pytest.raises(MaskCLIPError, match="image1: no such file"):
        evaluate(Oracle(), samples, Run())


def test_images_are_read_while_the_network_works_and_only_a_few_ahead():
    reading, most = threading.Event(), []

    class Slow(Drawn):
        def __getitem__(self, index):
            if index == 1:
                reading.set()
            most.append(index)
            return super().__getitem__(index)

    class Patient(Oracle):
        def __call__(self, name, image):
            if name == "image0":
                assert reading.wait(timeout=30)  # image 1 is read before image 0 is done
            assert len(most) <= len(self.seen) + 6
            return super().__call__(name, image)

    samples = Slow(name="drawn", split="val", vocabulary=WORDS, truths=TRUTHS * 10)
    evaluate(Patient(), samples, Run())


def test_corruption_changes_images_and_not_labels_and_depends_on_the_seed():
    pictures = {}

    class Sees(Oracle):
        def __call__(self, name, image):
            pictures.setdefault(name, []).append(np.asarray(image))
            return np.zeros((image.height, image.width), np.uint8)

    noise = Corruption("gaussian_noise", 3)
    samples = drawn([[0] * 40] * 40, [[0] * 40] * 40)
    for run in (Run(corruption=noise), Run(corruption=noise), Run(corruption=noise, seed=1)):
        result = evaluate(Sees(), samples, run)
        assert result.to_dict()["miou"] == 100
        assert result.metadata["corruption"] == "gaussian_noise:3"
    first, again, other = pictures["image0"]
    assert first.any()
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, pictures["image1"][0])


def test_processes_share_the_images_out():
    class Second(ProcessGroup):
        def all_gather(self, value):
            return [value]

    oracle = Oracle()
    evaluate(oracle, drawn(*TRUTHS), Run(), group=Second(rank=1, world_size=2))
    assert oracle.seen == ["image1"]


def test_emoji_scenes_are_the_held_out_ones():
    scenes = EmojiScenes(size=64)
    assert len(scenes) == len(EVALUATION_SEEDS) == scenes.official
    sample = scenes[3]
    scene = draw_scene(EVALUATION_SEEDS[3], size=64)
    assert sample.name == "scene_000003"
    assert np.array_equal(np.asarray(sample.image), scene.image)
    assert np.array_equal(sample.labels, scene.labels)
    assert scenes.metadata()["size"] == 64


class TestLoadPredictor:
    def test_metadata_hold_all_that_determines_the_scores(self):
        evaluation = Evaluation(
            dataset="emoji",
            model=EMOJI,
            protocol="windows",
            options=Options(key_smoothing=1.0),
        )
        metadata = load_predictor(evaluation, EmojiScenes(), device="cpu").metadata()
        assert metadata["model"] == "emoji-rn"
        assert len(metadata["weights"]) == 16
        assert (metadata["protocol"], metadata["method"], metadata["templates"]) == (
            "windows",
            "clean",
            "plain",
        )
        assert metadata["arithmetic"]["resizes"] == 2
        assert metadata["options"]["window"] == 224
        assert metadata["options"]["key_smoothing"] == 1.0
        assert metadata["background"] == "none"
        assert metadata["precision"] == "float32"
        assert metadata["prompts"]["dog"] == ("dog",)

    def test_a_background_needs_a_data_set_that_has_one(self):
        evaluation = Evaluation(dataset="emoji", model=EMOJI, background=0.5)
        with pytest.raises(MaskCLIPError, match="emoji has no background class"):
            load_predictor(evaluation, EmojiScenes(), device="cpu")

    def test_a_background_may_be_another_rule(self):
        voc = drawn(*TRUTHS)
        voc = Drawn(
            name="voc21", split="val", vocabulary=Vocabulary.builtin("voc21"), truths=voc.truths
        )
        evaluation = Evaluation(dataset="voc21", model=EMOJI, background=["sky", "grass"])
        with pytest.warns(match="never saw"):
            metadata = load_predictor(evaluation, voc, device="cpu").metadata()
        assert metadata["background"] == "2 words"

    def test_an_unknown_protocol_is_refused_at_once(self):
        with pytest.raises(MaskCLIPError, match="unknown protocol 'x'"):
            Evaluation(dataset="emoji", model=EMOJI, protocol="x")


def test_two_runs_of_a_model_agree_to_the_bit():
    evaluation = Evaluation(dataset="emoji", model=EMOJI, protocol="published")
    results = []
    for _ in range(2):
        samples = EmojiScenes(size=96)
        predictor = load_predictor(evaluation, samples, device="cpu")
        results.append(evaluate(predictor, samples, Run(limit=2)).to_dict())
    assert results[0] == results[1]
    assert not any(isinstance(v, float) and math.isnan(v) for v in results[0]["iou"].values())
