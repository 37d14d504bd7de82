from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from importlib import resources

import numpy as np
import open_clip
import pytest
import torch
from safetensors import safe_open

from maskclip.clip.towers import build_tower
from maskclip.clip.weights import load_clip
from maskclip.core.config import EMBEDDED
from maskclip.core.method import CLEAN
from maskclip.emoji import scenes
from maskclip.emoji.captions import class_names
from maskclip.emoji.scenes import draw_scene
from tools.emoji_clip.examples import draw_example
from tools.emoji_clip.losses import contrast, dense_colors, dense_names
from tools.emoji_clip.measure import dense_ious, retrieval
from tools.emoji_clip.models import CONFIGS, CONTEXT, build, image_and_dense, token_ids, tokenize
from tools.emoji_clip.package import package
from tools.emoji_clip.train import TrainSettings, losses_of, lr_at, normalize, train

QUICK = TrainSettings(steps=3, batch_size=6, warmup=1, lr=1e-3)


def test_training_imports_nothing_that_makes_labels():
    code = "import sys, tools.emoji_clip.train as t; print('maskclip.emoji.scenes' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize("model", sorted(CONFIGS))
def test_training_lowers_the_loss_while_labels_are_forbidden(model, tmp_path, monkeypatch):
    def forbidden(*arguments: object, **options: object) -> None:
        raise AssertionError("a mask was painted in training")

    monkeypatch.setattr(scenes, "paint_labels", forbidden)
    monkeypatch.setattr(scenes, "draw_scene", forbidden)
    drawn = [draw_example(number) for number in range(6)]
    images = torch.stack([torch.from_numpy(image.copy()).permute(2, 0, 1) for image, _ in drawn])
    captions = [caption for _, caption in drawn]
    torch.manual_seed(0)
    model = build(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    totals = []
    for _ in range(5):
        loss = sum(losses_of(model, images, captions, np.random.default_rng(0)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(float(loss.detach()))
    assert totals[-1] < totals[0] - 0.5


def test_a_run_repeats_and_resumes_to_the_same_weights(tmp_path):
    whole = train(QUICK, out=tmp_path / "whole", workers=0).state_dict()
    again = train(QUICK, out=tmp_path / "again", workers=0).state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    flat = replace(QUICK, cooldown=0.0)
    whole = train(flat, out=tmp_path / "flat", workers=0).state_dict()
    train(replace(flat, steps=2), out=tmp_path / "parts", workers=0)
    parts = train(flat, out=tmp_path / "parts", workers=0, resume=True).state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_resuming_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(QUICK, out=tmp_path, workers=0, resume=True)


def test_a_text_tower_can_be_taken_and_stays(tmp_path):
    first = train(QUICK, out=tmp_path / "first", workers=0)
    second = train(
        replace(QUICK, model="emoji-vit", text=tmp_path / "first" / "last.pt"),
        out=tmp_path / "second",
        workers=0,
    )
    assert torch.equal(first.text_projection, second.text_projection)
    assert torch.equal(first.token_embedding.weight, second.token_embedding.weight)


def test_the_learning_rate_rises_stays_and_falls():
    config = TrainSettings(steps=1000, warmup=10, lr=1.0, cooldown=0.5)
    assert [lr_at(step, config) for step in (0, 9, 400, 500, 750)] == [0.1, 1, 1, 1, 0.5]
    assert lr_at(999, config) == pytest.approx(0.002)


def test_equal_captions_are_no_rivals():
    logits = torch.tensor([[5.0, 5.0, 0.0], [5.0, 5.0, 0.0], [0.0, 0.0, 5.0]])
    low = math.exp(-5)
    rivals = contrast(logits, ["a dog", "a cat", "a fox"])
    equal = contrast(logits, ["a dog", "a dog", "a fox"])
    assert float(equal) == pytest.approx((2 * math.log(1 + low) + math.log(1 + 2 * low)) / 3)
    assert float(rivals) > float(equal) + 0.4


def test_the_losses_on_names_by_hand():
    # Two classes, two positions, even odds everywhere: chance 1/2 of either class.
    maps = torch.zeros(1, 2, 2)
    inside, found = dense_names(maps, torch.tensor([[True, False]]))
    assert float(inside) == pytest.approx(math.log(2))
    assert float(found) == pytest.approx(math.log(2))
    inside, _ = dense_names(maps, torch.tensor([[True, True]]))
    assert float(inside) == pytest.approx(0, abs=1e-6)
    maps[0, 1, 1] = 50.0  # the second class owns the second position; the first keeps its half
    _, found = dense_names(maps, torch.tensor([[True, True]]))
    assert float(found) == pytest.approx(math.log(2) / 2, abs=1e-6)


def test_a_colour_is_compared_with_other_colours_of_the_same_thing_alone():
    maps = torch.zeros(1, 3, 1)
    maps[0, 2] = 9.0  # a pair of another object, which must not matter
    rivals = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    loss = dense_colors(maps, torch.tensor([[True, False, False]]), rivals)
    assert float(loss) == pytest.approx(math.log(2))
    assert float(dense_colors(maps, torch.zeros(1, 3, dtype=torch.bool), rivals)) == 0


def test_tokens_are_open_clips_own_in_another_numbering():
    captions = [draw_example(number, size=8)[1] for number in range(50)]
    ids = torch.tensor(token_ids())
    assert list(ids) == sorted(ids)
    expected = open_clip.SimpleTokenizer(context_length=CONTEXT)(captions)
    assert torch.equal(ids[tokenize(captions)], expected)
    assert (expected[:, -1] == 0).all()  # no caption is cut


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_one_pass_equals_the_towers_readings(name):
    torch.manual_seed(0)
    visual = build(name).eval().visual
    images = normalize(torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8))
    with torch.no_grad():
        pooled, dense = image_and_dense(visual, images)
        tower = build_tower(visual, CLEAN)
        torch.testing.assert_close(pooled, visual(images), rtol=1e-4, atol=1e-5)
        features = tower.dense(images, keys=False, image=False).features
        torch.testing.assert_close(dense, features, rtol=1e-4, atol=1e-5)


def test_a_packed_checkpoint_is_the_trained_model(tmp_path):
    model = train(replace(QUICK, steps=1), out=tmp_path, workers=0).eval()
    file = tmp_path / "tiny.safetensors"
    package(tmp_path / "last.pt", file, model="emoji-rn", short_side=256)
    clip = load_clip(str(file))
    assert clip.short_side == 256
    text = ["a photo of a blue car."]
    with torch.no_grad():
        ours = model.encode_text(tokenize(text), normalize=True)
        theirs = clip.model.encode_text(clip.tokenizer(text), normalize=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-3)


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_shipped_model_is_whole_and_small(name):
    folder = resources.files("maskclip.clip").joinpath("pretrained")
    with resources.as_file(folder.joinpath(f"{name}.safetensors")) as path:
        assert path.stat().st_size < 8_000_000
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert metadata["format"] == "maskclip-embedded-1"
    assert metadata["vocabulary"] == "emoji"
    assert json.loads(metadata["config"])["text_cfg"]["vocab_size"] == 49408
    assert tuple(tensors["token_embedding.ids"].tolist()) == token_ids()
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize(("name", "least"), [("emoji-rn", 0.55), ("emoji-vit", 0.3)])
def test_a_shipped_model_labels_scenes(name, least):
    clip = load_clip(name)
    drawn = [draw_scene(seed) for seed in range(5_000, 5_030)]
    ious = dense_ious(clip, drawn, side=clip.short_side)
    assert ious.shape == (len(class_names()),)
    assert float(ious.nanmean()) > least


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_shipped_model_finds_captions(name):
    drawn = [draw_example(2**61 + number) for number in range(64)]
    images = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image, _ in drawn]
    assert retrieval(load_clip(name), images, [caption for _, caption in drawn]) > 0.9
