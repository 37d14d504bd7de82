import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from maskclip.cli import main
from maskclip.clip.prompts import TextRows, text_rows
from maskclip.clip.weights import load_clip
from maskclip.core.config import ModelConfig
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import PUBLISHED
from maskclip.data.corruptions import Corruption
from maskclip.data.specs import SPECS
from maskclip.recipes import KS_PD, RECIPES, TRAININGS, get_recipe, get_training, published_row
from maskclip.tasks import segmenter as task
from maskclip.tasks.evaluation.settings import Evaluation

RN50 = ModelConfig(name="RN50", method="published")
VITB16 = ModelConfig(name="ViT-B-16", method="published")
TEXT_DIMS = {"RN50": 1024, "RN50x16": 768, "ViT-B-16": 512}


def test_the_nine_rows_and_the_corrupted_one():
    assert len(RECIPES) == 10
    assert all(RECIPES[name].name == name for name in RECIPES)
    assert {row.evaluation.protocol for row in RECIPES.values()} == {"published"}
    assert RECIPES["voc20-rn50-speckle-noise-1"].corruption == Corruption("speckle_noise", 1)


@pytest.mark.parametrize(
    ("settings", "miou"),
    [
        ({"model": RN50}, 41.5),
        ({"dataset": "context59", "model": VITB16, "options": KS_PD}, 25.5),
        ({"dataset": "cocostuff171", "model": replace(VITB16, method="baseline")}, 4.3),
        ({"model": replace(RN50, method=PUBLISHED)}, 41.5),
        ({"model": replace(RN50, weights="RN50.pt", precision="bfloat16")}, 41.5),
        ({"model": replace(RN50, weights="random")}, None),
        ({"model": replace(RN50, method="clean")}, None),
        ({"model": replace(RN50, templates="plain")}, None),
        ({"model": replace(RN50, name="RN50:yfcc15m")}, None),
        ({"model": RN50, "options": KS_PD}, None),
        ({"model": RN50, "split": "train"}, None),
        ({"model": RN50, "protocol": "windows"}, None),
    ],
)
def test_a_published_score_is_shown_only_for_the_same_settings(settings, miou):
    row = published_row(Evaluation(**{"dataset": "voc20", **settings}), None)
    assert (None if row is None else row.miou) == miou


def test_corruption_is_part_of_the_settings():
    clean = get_recipe("voc20-rn50")
    assert published_row(clean.evaluation, Corruption("speckle_noise", 1)).miou == 30.9
    assert published_row(clean.evaluation, Corruption("speckle_noise", 2)) is None
    refined = replace(clean.evaluation, options=KS_PD)
    assert published_row(refined, Corruption("speckle_noise", 1)) is None


def test_an_unknown_recipe_names_those_that_there_are():
    with pytest.raises(MaskCLIPError, match="unknown recipe 'voc20': expected one of voc20-rn50, "):
        get_recipe("voc20")


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Two photos of usual sizes in each data set's layout."""
    root = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for name in ("voc20", "context59", "cocostuff171"):
        part = SPECS[name].splits["val"].parts[0]
        for stem, (height, width) in {"one": (333, 500), "two": (500, 375)}.items():
            coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            labels = draw.integers(0, 21, (4, 4), dtype=np.uint8)
            for folder, suffix, picture in (
                (part.images, part.image_suffix, coarse.resize((width, height))),
                (
                    part.masks,
                    part.mask_suffix,
                    Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST),
                ),
            ):
                path = root / folder / f"{stem}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
        if part.listing:
            (root / part.listing).parent.mkdir(parents=True, exist_ok=True)
            (root / part.listing).write_text("one\ntwo\n")
    return root


@pytest.fixture(scope="module")
def load_once():
    """A full-size network is built once for all its recipes."""
    loaded = {}

    def load(model, *, weights=None):
        if model not in loaded:
            loaded.clear()
            loaded[model] = load_clip(model, weights=weights)
        return loaded[model]

    return load


@pytest.mark.parametrize(
    "name", sorted(RECIPES, key=lambda name: RECIPES[name].evaluation.model.name)
)
def test_full_size_networks_run_every_recipe_end_to_end(
    name, roots, load_once, monkeypatch, capsys
):
    """Random weights, and random text rows in place of minutes in the text tower."""

    def random_rows(clip, names, **_):
        dim = TEXT_DIMS[clip.name.partition(":")[0]]
        generator = torch.Generator().manual_seed(0)
        return TextRows(F.normalize(torch.randn(len(names), dim, generator=generator), dim=1), ())

    monkeypatch.setattr(task, "load_clip", load_once)
    monkeypatch.setattr(task, "text_rows", random_rows)
    torch.set_num_threads(2)  # these are no tiny networks
    try:
        command = ["eval", "--recipe", name, "--data", str(roots), "--weights", "random"]
        assert main([*command, "--device", "cpu"]) == 0
    finally:
        torch.set_num_threads(1)
    captured = capsys.readouterr()
    row = RECIPES[name]
    assert f"{row.evaluation.dataset} val, 2 of " in captured.out
    assert "protocol published · method published · templates published" in captured.out
    assert (" under speckle_noise:1" in captured.out) == (row.corruption is not None)
    assert "mIoU" in captured.out
    assert "(published" not in captured.out  # random weights do not reach the published score
    assert f"not the settings of {name}" in captured.err
    assert "officially has" in captured.err
    if sys.platform == "linux":  # elsewhere there is no such number, or in another unit
        import resource

        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 6 * 2**20  # KiB, at the peak


def test_the_text_path_of_a_full_size_network(load_once):
    clip = load_once("ViT-B-16:openai", weights="random")
    rows = text_rows(clip, ["dog", "red car", "potted plant"], templates="plain").rows
    assert rows.shape == (3, TEXT_DIMS["ViT-B-16"])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    assert (rows[0] - rows[1]).abs().max() > 1e-3


def test_every_published_student_is_there_by_name():
    assert {name: row.miou for name, row in TRAININGS.items() if row.miou is not None} == {
        "voc20-annofree-rn50": 58.0,
        "voc20-annofree-rn50x16": 67.5,
        "context59-annofree-rn50": 23.9,
        "context59-annofree-rn50x16": 25.2,
        "context59-annofree-vitb16": 31.1,
        "cocostuff171-annofree-rn50": 13.8,
        "cocostuff171-annofree-rn50x16": 17.3,
        "cocostuff171-annofree-vitb16": 18.0,
        "voc20-zeroshot-rn50": 87.8,
        "context60-zeroshot-rn50": 48.4,
        "cocostuff171-zeroshot-rn50": 39.7,
    }


def test_zero_shot_students_learn_from_clip_for_a_tenth_and_then_from_themselves():
    training = get_training("voc20-zeroshot-rn50").training
    assert training.supervision.clip_guided == (1, 1999)
    assert training.supervision.self_training == (2000, None)
    assert training.supervision.unlabeled == (15, 16, 17, 18, 19)


def test_the_student_of_context_with_background_is_as_published():
    training = get_training("context60-zeroshot-rn50").training
    assert training.student == "deeplabv3plus-r101"
    assert training.supervision.background
    assert 0 not in training.supervision.unlabeled
    assert (training.optimization.lr, training.optimization.weight_decay) == (0.004, 1e-4)
    assert training.augmentation.crop == (480, 480)


def test_an_unknown_student_names_those_there_are():
    with pytest.raises(MaskCLIPError, match="voc20-annofree-rn50"):
        get_training("voc20")
