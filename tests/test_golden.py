"""Agreement with arrays of the authors' code: the cases of golden/README.md and of the full set."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from maskclip.clip.encoder import DenseCLIP
from maskclip.core import resize
from maskclip.core.dense import Scoring, score, similarity
from maskclip.core.method import BASELINE, PUBLISHED
from maskclip.core.metrics import ConfusionMatrix
from tests.conftest import GOLDEN, GOLDEN_FILES
from tests.golden.networks import build_tower, read_rows, read_student, read_tower

REFINEMENTS = {
    "none": {},
    "pd": {"prompt_denoising": 0.5},
    "ks": {"key_smoothing": 1.0},
    "pdks": {"prompt_denoising": 0.5, "key_smoothing": 1.0},
    "ks05": {"key_smoothing": 0.5},
}
TOLERANCE = 1e-4


@cache
def weights_of(case):
    """Return the published encoder and the text rows of a case named `<weights>_<H>x<W>`."""
    name, folder = case.stem.rpartition("_")[0], case.parents[1]
    tower = build_tower(read_tower(folder, name))
    # The method brings ImageNet's statistics; wrong ones here would show if it did not.
    encoder = DenseCLIP(tower, method=PUBLISHED, mean=(0, 0, 0), std=(1, 1, 1))
    return encoder, read_rows(folder, name)


def watch(visual, seen):
    """Record what passes the tower's modules, under the golden arrays' names."""

    def note(name, *, entry=False, change=lambda x: x):
        def hook(_, inputs, output):
            seen[name] = change(inputs[0] if entry else output).detach()

        return hook

    hooks = [visual.conv1.register_forward_hook(note("input", entry=True))]
    if hasattr(visual, "layer1"):
        for stage in (1, 2, 3, 4):
            layer = getattr(visual, f"layer{stage}")
            hooks.append(layer.register_forward_hook(note(f"stage{stage}")))
        return hooks
    tokens = note("patch_tokens", change=lambda x: x.flatten(2).transpose(1, 2))
    hooks.append(visual.conv1.register_forward_hook(tokens))
    hooks.append(visual.ln_pre.register_forward_hook(note("tokens_pos", entry=True)))
    hooks.append(visual.ln_pre.register_forward_hook(note("tokens_ln_pre")))
    value = "last_layer_v_before_ln_post"
    hooks.append(visual.ln_post.register_forward_hook(note(value, entry=True)))
    for index, block in enumerate(visual.transformer.resblocks[:-1]):
        hooks.append(block.register_forward_hook(note(f"layer{index}_out")))
    return hooks


def enlarged(maps, geometry):
    (tile,) = resize.lay_out(maps, geometry)
    return (tile.rows @ tile.maps @ tile.columns.T)[None]


@torch.inference_mode()
def computed(case, arrays):
    """Run the product on a case's picture: array name -> what it must equal."""
    encoder, rows = weights_of(case)
    images = torch.from_numpy(arrays["image_rgb_u8"]).permute(2, 0, 1)[None]
    seen = tuple(images.shape[-2:])
    ours = {}
    hooks = watch(encoder.visual, ours)
    dense = encoder.encode(images, keys=True)
    for hook in hooks:
        hook.remove()
    ours["input"] = ours["input"][:, :, : seen[0], : seen[1]]
    ours["feat"] = dense.features
    ours["k"] = dense.keys.flatten(2).transpose(1, 2)
    ours["logits"] = similarity(dense.features, rows)
    output = tuple(int(side) for side in arrays.get("ori_shape", seen))
    window = (range(seen[0]), range(seen[1]))
    for name, steps in REFINEMENTS.items():
        classes = tuple(range(len(rows)))
        maps = score(
            dense,
            Scoring(rows=rows, classes=classes, method=PUBLISHED, temperature=100, **steps),
        )
        ours[f"refined_{name}"] = maps
        geometry = resize.Geometry([window], dense.covered, seen, output, PUBLISHED.resizes)
        ours[f"final_{name}"] = enlarged(maps, geometry)
        ours[f"pred_{name}"], _ = resize.label(maps, geometry)
        if name == "none":
            ours["encode_decode_none"] = enlarged(maps, replace(geometry, output=seen))
    return {name: array.numpy() for name, array in ours.items()}


def distance(ours, theirs):
    assert ours.shape == theirs.shape
    theirs = theirs.astype(np.float64)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def clear(final):
    """Where the two best values differ by more than the tolerance, relative to the best."""
    second, best = np.sort(final[0], axis=0)[-2:]
    return best - second > TOLERANCE * np.abs(best)


def test_golden_dense(golden_dense):
    with np.load(golden_dense) as file:
        arrays = dict(file)
    ours = computed(golden_dense, arrays)
    far, compared = {}, 0
    for name in sorted(set(arrays) & set(ours)):
        if name.startswith("pred_"):
            final = name.replace("pred_", "final_")
            sure = clear(arrays.get(final, ours[final]))
            wrong = int(((ours[name] != arrays[name]) & sure).sum())
            if wrong:
                far[name] = wrong
        else:
            theirs = arrays[name]
            if name == "last_layer_v_before_ln_post":
                theirs = theirs[:, 1:]  # the product leaves the class token out
            error = distance(ours[name], theirs)
            if not error <= TOLERANCE:
                far[name] = float(error)
        compared += 1
    assert not far
    assert compared >= 3


@torch.inference_mode()
def test_golden_baseline(golden_dense):
    """Ordinary attention, read densely: of a ViT its last map, of a ResNet the attention pool's."""
    encoder, rows = weights_of(golden_dense)
    baseline = DenseCLIP(encoder.visual, method=BASELINE, mean=(0, 0, 0), std=(1, 1, 1))
    with np.load(golden_dense) as file:
        wanted = {name: file[name] for name in file.files}
    seen = {}
    hooks = watch(baseline.visual, seen)
    if hasattr(baseline.visual, "ln_post"):
        keep = baseline.visual.ln_post.register_forward_hook(
            lambda _, inputs, output: seen.update(x_map=output)
        )
        hooks.append(keep)
    images = torch.from_numpy(wanted["image_rgb_u8"]).permute(2, 0, 1)[None]
    dense = baseline.encode(images)
    for hook in hooks:
        hook.remove()
    checked = 0
    if "x_map" in wanted and "x_map" in seen:
        theirs = wanted["x_map"]
        ours = seen["x_map"].transpose(1, 2).reshape(theirs.shape).numpy()
        assert distance(ours, theirs) < TOLERANCE
        checked += 1
    if "logits_attn_pooling_8heads" in wanted:
        ours = similarity(dense.features, rows).numpy()
        assert distance(ours, wanted["logits_attn_pooling_8heads"]) < TOLERANCE
        checked += 1
    if not checked:
        pytest.skip("the case has no array of ordinary attention")


def transformed(label, facts):
    """Apply to a label what a data set's loader applies before evaluation sees it."""
    label = label.copy()
    if facts["reduce_zero_label"]:
        label[label == 0] = 255
        label = label - 1
        label[label == 254] = 255
    if facts["label_map"]:
        original = label.copy()
        for old, new in facts["label_map"].items():
            label[original == int(old)] = new
    return torch.from_numpy(label)


def areas(metric):
    counts = metric.confusion.numpy()
    hit = counts.diagonal()[:-1]
    called, true = counts.sum(axis=0)[:-1], counts.sum(axis=1)[:-1]
    return np.stack([hit, true + called - hit, called, true])


def test_golden_metrics(golden_metrics):
    facts = json.loads(golden_metrics.with_suffix(".json").read_text(encoding="utf-8"))
    with np.load(golden_metrics) as file:
        arrays = dict(file)
    for name in facts:
        check_metrics(name, facts[name], arrays)
    assert facts


def check_metrics(name, facts, arrays):
    exact = {"rtol": 1e-9, "atol": 0, "equal_nan": True, "err_msg": name}
    metric = ConfusionMatrix(facts["num_classes"])
    for i in range(facts["n"]):
        prediction = torch.from_numpy(arrays[f"{name}_pred{i}"])
        label = transformed(arrays[f"{name}_label{i}"], facts)
        alone = ConfusionMatrix(facts["num_classes"])
        alone.update(prediction, label)
        np.testing.assert_array_equal(areas(alone), arrays[f"{name}_areas{i}"], err_msg=name)
        metric.update(prediction, label)
    scores = metric.compute()
    np.testing.assert_array_equal(areas(metric), arrays[f"{name}_total"], err_msg=name)
    np.testing.assert_allclose(scores.iou, arrays[f"{name}_IoU"], **exact)
    np.testing.assert_allclose(scores.accuracy, arrays[f"{name}_Acc"], **exact)
    np.testing.assert_allclose(scores.precision, arrays[f"{name}_Prec"], **exact)
    np.testing.assert_allclose(scores.pixel_accuracy, arrays[f"{name}_aAcc"], **exact)
    np.testing.assert_allclose(scores.miou, facts["mIoU"], **exact)
    assert round(100 * scores.miou, 2) == facts["mIoU_reported"], name


@pytest.mark.skipif(not GOLDEN["full"].is_dir(), reason="needs the full golden set")
def test_drawn_weights_are_those_recorded():
    small, full = GOLDEN["small"], GOLDEN["full"]
    for name in ("vit_tiny", "rn_tiny"):
        drawn, recorded = read_tower(small, name), read_tower(full, name)
        assert drawn.keys() == recorded.keys()
        assert all(torch.equal(drawn[key], recorded[key]) for key in drawn)
        assert torch.equal(read_rows(small, name), read_rows(full, name))
    for case in small.glob(GOLDEN_FILES["golden_training"]):
        drawn, recorded = read_student(case), read_student(full / "maskclip_plus" / case.name)
        assert all(torch.equal(drawn[key], recorded[key]) for key in drawn)
        assert {key for key in recorded if key.startswith("backbone")} <= set(drawn)


def test_golden_arrays_stay_small():
    files = [
        path
        for path in GOLDEN["small"].rglob("*")
        if path.suffix in (".npz", ".json", ".safetensors")
    ]
    assert 0 < sum(path.stat().st_size for path in files) < 2**20
