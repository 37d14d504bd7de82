"""Agreement with arrays of eight later methods' own code: every case of the full golden set.

Arrays are called `<weights>/<image>/<case>/<array>`; what is computed here is the features, and
what follows from them.
"""

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.feedback import alike
from maskclip.clip.positions import position_table
from maskclip.core import refinement
from maskclip.core.config import Options
from maskclip.core.dense import Scoring, label, read_again, refine, score, similarity
from maskclip.core.method import Alignment, Feedback, Middle
from maskclip.core.methods import (
    CLEARCLIP,
    GEM,
    METHODS,
    NACLIP,
    PEARL,
    RESCLIP,
    SCCLIP,
    SCLIP,
    SURGERY,
)
from maskclip.core.refinement import patch_classes
from maskclip.core.resize import Geometry, cut, enlarge
from tests.conftest import GOLDEN
from tests.golden.networks import build_tower, read_rows

FOLDER = GOLDEN["full"] / "heads"
KERNELS = {
    "vanilla": (("qk", 1.0),),
    "MaskCLIP": (("identity", 1.0),),
    "ClearCLIP": (("qq", 1.0),),
    "SCLIP": (("qq", 1.0), ("kk", 1.0)),
    "kk": (("kk", 1.0),),
    "naclip": (("kk", 1.0),),
    "csa": (("qq", 1.0), ("kk", 1.0)),
}
AS_RELEASED = {"position_resize": "count", "position_filter": "offset"}


def parts(whole, **fields):
    """Return the fields that say whether a block's residual and MLP are kept."""
    return {"residual": whole, "mlp": whole, **fields}


def method_of(file, case):
    """Return the method of a golden case, by its name; None where it is no case of features."""
    if file == "naclip" and (found := re.fullmatch(r"(\w+)_(reduced|vanilla)_std([\d.]+)", case)):
        strategy, arch, std = found.groups()
        if strategy == "nonly":  # an ablation: the window alone, without queries and keys
            return None
        window = float(std) if strategy == "naclip" else None
        fields = parts(arch == "vanilla", kernels=KERNELS[strategy], window=window)
        return replace(NACLIP, **AS_RELEASED, **fields)
    if file == "sclip" and case == "csa":
        return replace(SCLIP, **AS_RELEASED)
    if file == "clearclip":
        kind, rest = case.split("_", 1)
        count = int(rest[-1]) if "_last" in rest else 1
        fields = parts(rest.startswith("residual"), kernels=KERNELS[kind], blocks=count)
        return replace(CLEARCLIP, **AS_RELEASED, **fields)
    if file == "clip_surgery":
        return SURGERY
    if file == "gem":
        fields = {}
        for name, value in re.findall(r"(depth|iter|temp)([\d.]+)", case):
            if name == "depth":
                fields["blocks"] = int(value) - 1
            elif name == "iter":
                fields["unit_iterations"] = int(value)
            else:
                fields["unit_temperature"] = float(value)
        return replace(GEM, **fields)
    if file == "pearl" and case.startswith("pearl"):
        alignment = Alignment(
            solver="svd" if "svd" in case else "newton-schulz",
            centered_keys=0.0 if "use_kk-False" in case else 0.08,
        )
        fields = parts("vanilla" in case, alignment=alignment)
        return replace(PEARL, **AS_RELEASED, **fields)
    if file == "resclip":
        return resclip(case)
    if file == "scclip":
        return replace(SCCLIP, **AS_RELEASED)
    return None


RESCLIPS = {"voc20": (0.1, (2.0, 0.6), (2.1, 0.6)), "ade20k": (0.25, (2.0, 0.3), (2.1, 0.7))}


def resclip(case):
    """Return the method of a case of ResCLIP, `<strategy>_<arch>_<config>` and options."""
    strategy, arch, config = re.match(r"([a-z]+)_(wo?)_resi_([a-z0-9]+)", case).groups()
    threshold, (tau, share), (sharpness, weight) = RESCLIPS[config]
    feedback = Feedback(
        logits=sharpness * (1 - weight),
        weight=sharpness * weight,
        threshold=threshold,
        unsure="first",
        whole_lines=False,
        connected="keep_entity" not in case,
    )
    kernels = KERNELS[
        {"resclip": "kk", "clearclip": "ClearCLIP", "sclip": "SCLIP"}.get(strategy, strategy)
    ]
    fields = parts(
        arch == "w",
        kernels=tuple((name, tau * (1 - share)) for name, _ in kernels),
        middle=Middle(blocks=(5, 6, 7, 8), weight=tau * share),
        window=5.0 if strategy in ("resclip", "naclip") else None,
        feedback=None if "rcs_only" in case else feedback,
    )
    return replace(RESCLIP, **AS_RELEASED, **fields)


def cases(pattern, last):
    for path in sorted(FOLDER.glob(pattern)):
        with np.load(path) as arrays:
            names = [name for name in arrays if name.endswith(f"/{last}")]
        found = sorted({name.rpartition("/")[0] for name in names})
        for group in found:
            yield pytest.param(path, group, id=f"{path.stem}-{group}")


def discovered(pattern="*.npz", last="feat"):
    found = list(cases(pattern, last)) if FOLDER.is_dir() else []
    reason = f"no {FOLDER}: set MASKCLIP_GOLDEN to the full golden set"
    return found or [pytest.param(None, "", marks=pytest.mark.skip(reason=reason))]


@cache
def tower_of(weights):
    path = {
        "tiny": GOLDEN["full"] / "weights" / "vit_tiny_openai.safetensors",
        "deep": FOLDER / "weights" / "vit_deep10_openai_fp16.safetensors",
    }[weights]
    state = {name: value.float() for name, value in load_file(path).items()}
    return build_tower(state, quick_gelu=True)


def pixels(image):
    with np.load(FOLDER / "images.npz") as arrays:
        if f"{image}/image_rgb_u8" not in arrays:
            pytest.skip(f"the image {image} is not in the folder")
        rgb = arrays[f"{image}/image_rgb_u8"]
    return torch.from_numpy(rgb).permute(2, 0, 1)[None]


def encoder_of(weights, method):
    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)
    return DenseCLIP(tower_of(weights), method=method, mean=mean, std=std).eval()


def scoring_of(method, **fields):
    rows = read_rows(GOLDEN["full"], "vit_tiny")
    classes = tuple(range(len(rows)))
    return Scoring(rows=rows, classes=classes, method=method, **{"temperature": 40.0, **fields})


def leave_positions(visual, case):
    """Leave a tower the positions of an image before, if there was one, as that code does."""
    size = re.search(r"_after_(\d+)x(\d+)", case)
    if size is None:
        return
    grid = tuple(int(side) // visual.conv1.kernel_size[0] for side in size.groups())
    table = position_table(visual.positional_embedding, visual.grid_size, grid, SURGERY)
    visual.positional_embedding = torch.nn.Parameter(table)
    visual.grid_size = grid


def distance(ours, theirs):
    theirs = theirs.reshape(ours.shape) if theirs.ndim == ours.ndim else theirs
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def read(path, group):
    with np.load(path) as file:
        return {
            name.rpartition("/")[2]: file[name] for name in file if name.startswith(f"{group}/")
        }


@torch.inference_mode()
@pytest.mark.parametrize(("path", "group"), discovered())
def test_features(path, group):
    weights, image, case = group.split("/")
    method = method_of(path.stem, case)
    if method is None:
        pytest.skip(f"{case} is not computed here")
    arrays = read(path, group)
    network = encoder_of(weights, method)
    leave_positions(network.visual, case)
    dense = network.encode(pixels(image))
    if method.feedback is not None:
        dense = read_again(dense, scoring_of(method))
    features = dense.features
    ours = {"feat": features, "feat_norm": F.normalize(features, dim=1)}
    rows = read_rows(GOLDEN["full"], "vit_tiny")
    ours["logits"] = torch.einsum("bchw,kc->bkhw", ours["feat_norm"], rows)
    ours["cosine"] = ours["logits"]
    if arrays["feat"].ndim == 3:  # B x hw x D
        ours = {"feat": features.flatten(2).transpose(1, 2)}
    tolerance = 1e-4 if path.stem in ("pearl", "resclip") else 1e-5
    far = {
        name: float(distance(ours[name].numpy(), arrays[name]))
        for name in ours.keys() & arrays.keys()
    }
    assert far
    assert max(far.values()) < tolerance, far


@torch.inference_mode()
@pytest.mark.parametrize(("path", "group"), discovered("resclip.npz", "sfr"))
def test_classes_that_are_given_back(path, group):
    weights, image, case = group.split("/")
    arrays, method = read(path, group), resclip(case)
    dense = encoder_of(weights, method).encode(pixels(image))
    rows = read_rows(GOLDEN["full"], "vit_tiny")
    maps = similarity(dense.features, rows)
    classes = patch_classes(maps, dense.again.images, dense.covered, method.feedback)
    assert (classes[0].numpy() == arrays["patch_classes"]).all()
    bias = alike(classes[0], replace(method.feedback, weight=1.0), dense.features)
    found = bias(slice(0, len(arrays["sfr"])))
    # both are rounded to half precision
    np.testing.assert_allclose(found, arrays["sfr"] / arrays["sfr"].max(), rtol=0, atol=5e-4)


def normalized(image, count=1):
    with np.load(FOLDER / "images.npz") as arrays:
        picture = torch.from_numpy(arrays[f"{image}/input"])
    return torch.cat([picture, picture.flip(3)][:count])


@pytest.mark.parametrize(("path", "group"), discovered("pamr.npz", "out"))
def test_pamr(path, group):
    image, case = group.split("/")
    _, times, dilations, count = case.split("_")
    arrays = read(path, group)
    ours = refinement.pamr(
        torch.from_numpy(arrays["mask"]),
        normalized(image, int(count.removeprefix("b"))),
        iterations=int(times.removeprefix("iter")),
        dilations=[int(size) for size in dilations.removeprefix("dil").split("-")],
    )
    np.testing.assert_allclose(ours, arrays["out"], rtol=0, atol=5e-6)


@pytest.mark.parametrize(("path", "group"), discovered("pearl.npz", "out_iter10"))
def test_propagation(path, group):
    arrays = {name: torch.from_numpy(value) for name, value in read(path, group).items()}
    own = refinement.own_weights(read_rows(GOLDEN["full"], "vit_tiny"))
    grid = int(group.rpartition("grid")[2])
    for name, iterations, tolerance in (("out_iter10", 10, 1e-6), ("out", 25, 1e-4)):
        std = arrays["image"].new_tensor(refinement.CLIP_STD)[:, None, None]
        picture = arrays["image"] * std  # the golden one is normalised
        ours = refinement.propagate(
            arrays["logits"], picture, own, grid=grid, iterations=iterations
        )
        np.testing.assert_allclose(ours, arrays[name], rtol=0, atol=tolerance)


@torch.inference_mode()
@pytest.mark.parametrize(("path", "group"), discovered("clip_surgery.npz", "feature_surgery"))
def test_feature_surgery(path, group):
    arrays = {name: torch.from_numpy(value) for name, value in read(path, group).items()}
    rows = read_rows(GOLDEN["full"], "vit_tiny")
    weights, image, case = group.split("/")
    network = encoder_of(weights, SURGERY)
    leave_positions(network.visual, case)
    dense = network.encode(pixels(image), image=True)
    scoring = Scoring(
        rows=rows,
        classes=tuple(range(len(rows))),
        method=replace(SURGERY, upsample="maps"),
        temperature=100.0,
        refine=("surgery",),
    )
    ours = score(dense, scoring)
    np.testing.assert_allclose(ours, arrays["feature_surgery"], rtol=0, atol=2e-6)


def predicted(path, group, method, *, window=None, **refinement):
    """Return the maps of a whole prediction at the size of the golden one: (K, H, W)."""
    weights, image, _ = group.split("/")
    arrays = read(path, group)
    output = next(iter(arrays.values())).shape[-2:]
    picture = pixels(image)[0]
    size = tuple(picture.shape[1:])
    view = Options(window=window, stride=None if window is None else 32)
    windows = cut(size, window=view.window, stride=view.stride)
    encoder = encoder_of(weights, method)
    rows = read_rows(GOLDEN["full"], "vit_tiny")
    scoring = Scoring(
        rows=rows,
        classes=tuple(range(len(rows))),
        method=method,
        temperature=40.0,
        **refinement,
    )
    crops = [picture[None, :, r.start : r.stop, c.start : c.stop] for r, c in windows]
    found = [encoder.encode(crop) for crop in crops]
    maps = torch.cat([score(dense, scoring) for dense in found])
    geometry = Geometry(windows, found[0].covered, size, output, resizes=2)
    return arrays, enlarge(*refine(maps, picture, geometry, scoring)).numpy()


@torch.inference_mode()
@pytest.mark.parametrize(("path", "group"), discovered("*clip.npz", "logits_full"))
def test_sliding_windows(path, group):
    method = METHODS[path.stem]
    method = replace(method, **AS_RELEASED, upsample="maps")
    arrays, ours = predicted(path, group, method, window=48)
    np.testing.assert_allclose(ours, arrays["logits_full"][0], rtol=0, atol=3e-6)


@torch.inference_mode()
@pytest.mark.parametrize(("path", "group"), discovered("*clip.npz", "pred"))
def test_predictions(path, group):
    """Whole predictions, with and without PAMR, in a window or at once: labels of all pixels."""
    method = replace(METHODS[path.stem], **AS_RELEASED, upsample="prompts")
    refinement = {"refine": ("pamr",), "refine_size": 0} if group.endswith("pamr") else {}
    arrays, maps = predicted(path, group, method, **refinement)
    ours = torch.from_numpy(40 * maps).softmax(dim=0).numpy()
    if "probs" in arrays:
        np.testing.assert_allclose(ours, arrays["probs"], rtol=0, atol=1e-5)
    best, second = np.sort(ours, axis=0)[-1], np.sort(ours, axis=0)[-2]
    clear = best - second > 1e-5
    assert clear.mean() > 0.99
    size = maps.shape[1:]
    whole = Geometry([(range(size[0]), range(size[1]))], size, size, size, resizes=2)
    classes = tuple(range(len(maps)))
    scoring = Scoring(rows=torch.eye(len(maps)), classes=classes, method=method, temperature=40.0)
    labels, scores = label(torch.from_numpy(maps)[None], whole, scoring)
    assert (labels.numpy() == arrays["pred"])[clear].all()
    np.testing.assert_allclose(scores, best, rtol=0, atol=1e-5)
