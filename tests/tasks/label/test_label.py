"""Whole labellings of drawn scenes: tiny, on the CPU, and the same however they are broken up."""

import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
import warnings
from dataclasses import replace
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

import maskclip
from maskclip.clip.choice import Choice
from maskclip.core.cleaning import Cleaning, clean
from maskclip.core.config import ModelConfig, Options
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.method import PUBLISHED
from maskclip.core.methods import NACLIP, SCCLIP
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats import FORMATS
from maskclip.data.formats.per_photo import Probabilities
from maskclip.data.sources import Source, find_sources
from maskclip.emoji.scenes import draw_scene
from maskclip.plus.config import StudentConfig
from maskclip.plus.files import TrainedStudent, save_student
from maskclip.plus.student import build_student
from maskclip.tasks import segmenter
from maskclip.tasks.label import Job, LabelingError, manifest
from maskclip.tasks.label import worker as worker_module
from maskclip.tasks.label.manifest import Counts, Manifest
from maskclip.tasks.label.pipeline import MANIFEST, label_photos, plan_labels
from maskclip.tasks.segmenter import CLIPSegmenter

WORDS = Vocabulary.parse(["dog", "red car", "grass", "sky", "water"])
SIZES = {
    "x.jpg": 64,
    "x.png": (48, 64),
    "sub/y.png": 64,
    "sub/deep/y.png": (64, 40),
    "z ü.png": 64,
}
SCENES = {
    "sub/deep/y": "sub/deep/y.png",
    "sub/y": "sub/y.png",
    "x": "x.jpg",
    "x_png": "x.png",
    "z ü": "z ü.png",
}
"""The photos, under the names of their results."""
NAMES = list(SCENES)


MODEL = ModelConfig(name="emoji", templates="plain", precision="float32")


def job(out, **fields):
    plain = {"model": MODEL, "vocabulary": WORDS, "options": Options(short_side=160)}
    return Job(out=out, **(plain | fields))


def draw(path, seed, size=64):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_scene(seed, size=size).image).save(path)


def run(photos, out, *, on_progress=None, **fields):
    sources = find_sources([photos])
    return label_photos(job(out, **fields), sources, device="cpu", on_progress=on_progress)


def tree(out):
    """All files with their content, but for the record of the work."""
    files = (path for path in out.rglob("*") if path.is_file())
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in files}
    for name, content in found.items():
        if name.endswith(".html"):  # says where it lies, and leads to the photos from there
            plain = content.replace(bytes(out), b"OUT")
            found[name] = re.sub(rb'"(\.\./)+([^"]*/)?scenes', b'"SCENES', plain)
    return {name: content for name, content in found.items() if not name.startswith(MANIFEST)}


def times(out):
    """When the files of photos were written."""
    files = [path for suffix in ("png", "jpg", "npz", "jsonl") for path in out.rglob(f"*.{suffix}")]
    return {path.relative_to(out): path.stat().st_mtime_ns for path in files}


def labels(out, name):
    with Image.open(out / "png" / f"{name}.png") as image:
        return np.array(image)


def report(out):
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def names_into(seen):
    return lambda outcomes, _: seen.extend(outcome.task.name for outcome in outcomes)


class StoppedError(Exception):
    pass


def stop(*_):
    raise StoppedError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Photos in folders, two of one name, and nothing wrong with them."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed, (name, size) in enumerate(SIZES.items()):
        draw(folder / name, seed, size)
    return folder


@pytest.fixture(scope="module")
def whole(scenes, tmp_path_factory):
    """Their labels in all formats at once, cleaned, by one unbroken run."""
    out = tmp_path_factory.mktemp("whole")
    assert run(scenes, out, **ALL) == Counts(done=5, failed=0, left=0)
    return out


ALL = {"formats": tuple(FORMATS), "cleaning": Cleaning(confidence=0.4, min_region=200)}


@pytest.fixture
def photos(scenes, tmp_path):
    """A copy of the scenes, to add to and to break."""
    return shutil.copytree(scenes, tmp_path / "photos")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture(scope="module")
def segmented(scenes):
    """The same scenes one by one, by name, without cleaning."""
    segmenter = maskclip.load("emoji", templates="plain", precision="float32", device="cpu")
    return {
        name: segmenter.segment(scenes / place, WORDS, short_side=160, refine=())
        for name, place in SCENES.items()
    }


def same(found, expected):
    """Equal up to what batching changes in the last digits."""
    assert found.shape == expected.shape
    assert (found == expected).mean() > 0.998


def test_labels_are_those_of_segment_in_a_tree_like_that_of_the_photos(scenes, segmented, out):
    assert run(scenes, out) == Counts(done=5, failed=0, left=0)
    for name, found in segmented.items():
        same(labels(out, name), found.labels)
    pngs = {path.relative_to(out / "png").as_posix() for path in (out / "png").rglob("*.png")}
    assert pngs == {f"{name}.png" for name in NAMES}
    assert (out / "png/classes.txt").read_text().splitlines() == list(WORDS.names)


def test_all_formats_at_once_hold_all_photos(whole):
    assert {path.name for path in whole.iterdir()} == {
        *FORMATS,
        "thumbnails",
        "report",
        "report.html",
        "report.json",
        "manifest.sqlite",
    }
    for kind in ("panoptic", "instances"):
        images = json.loads((whole / "coco" / f"{kind}.json").read_text())["images"]
        assert [image["file_name"] for image in images] == [SCENES[name] for name in NAMES]
    assert (whole / "cvat/annotations.zip").stat().st_size > 0
    assert len(json.loads((whole / "label-studio/tasks-00001.json").read_text())) == 5
    for folder, suffix in (("png", "png"), ("probabilities", "npz"), ("thumbnails", "jpg")):
        assert len(list((whole / folder).rglob(f"*.{suffix}"))) == 5
    assert not list(whole.rglob(".writing-*"))


@pytest.fixture(scope="module")
def read_probabilities():
    """The reader that the documentation gives."""
    page = (Path(__file__).parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")
    scope = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], scope)
    return scope["read"]


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 64, "stride": 40}, {"short_side": 97, "window": 64}, {"short_side": 0}],
)
@pytest.mark.parametrize("model", ["emoji", "emoji-vit"])
def test_labels_are_the_most_probable_classes(scenes, out, model, options, read_probabilities):
    fields = {
        "formats": ("png", "probabilities"),
        "options": Options(**{"short_side": 160, **options}),
        "model": replace(MODEL, name=model),
        "vocabulary": WORDS.with_background(0.3),
    }
    run(scenes, out, **fields)
    for name in NAMES:
        maps = read_probabilities(out / "probabilities" / f"{name}.npz")
        np.testing.assert_array_equal(maps.argmax(axis=0), labels(out, name))
        with np.load(out / "probabilities" / f"{name}.npz") as found:
            assert found["classes"].tolist() == ["background", *WORDS.names]
            assert len(found["probabilities"]) == len(found["windows"])


def test_what_is_unsure_or_small_is_left_out_of_the_files_and_counted(whole, segmented):
    kept = {name: labels(whole, name) for name in NAMES}
    for name, found in segmented.items():
        same(kept[name], clean(found.labels, found.scores, ALL["cleaning"], WORDS))
    dropped = {name: (kept[name] == WORDS.ignore).mean() for name in NAMES}
    assert 0 < sum(dropped.values()) < len(NAMES)
    for entry in report(whole)["photos"]:
        shares = [found["dropped"] for found in entry["classes"].values()]
        assert sum(shares) == pytest.approx(dropped[entry["name"]], abs=1e-3)


def test_the_statistics_of_the_report_are_those_of_the_files(whole):
    found = report(whole)
    assert found["settings"]["model"] == "emoji"
    assert found["settings"]["vocabulary"] == WORDS.to_dict()
    kept = [labels(whole, name) for name in NAMES]
    pixels = sum(array.size for array in kept)
    summary = found["summary"]
    assert (summary["done"], summary["failed"], summary["pixels"]) == (5, 0, pixels)
    assert summary["kept"] == sum((array != WORDS.ignore).sum() for array in kept)
    assert summary["coverage"] == pytest.approx(summary["kept"] / pixels)
    for label, total in enumerate(summary["classes"]):
        assert total["name"] == WORDS.names[label]
        assert total["kept"] == sum((array == label).sum() for array in kept)
        assert total["coverage"] == pytest.approx(total["kept"] / pixels)
    assert [entry["name"] for entry in found["photos"]] == NAMES
    for entry, array in zip(found["photos"], kept, strict=True):
        assert (entry["height"], entry["width"]) == array.shape
        assert entry["coverage"] == pytest.approx((array != WORDS.ignore).mean(), abs=1e-4)
        for name, stats in entry["classes"].items():
            share = (array == WORDS.names.index(name)).mean()
            assert stats["coverage"] == pytest.approx(share, abs=1e-4)


def test_the_page_shows_pictures_that_are_there(whole):
    text = (whole / "report.html").read_text(encoding="utf-8")
    pictures = [unquote(unescape(source)) for source in re.findall(r'src="([^"]+)"', text)]
    assert set(pictures) == {f"thumbnails/{name}.jpg" for name in NAMES}
    for picture in pictures:
        with Image.open(whole / picture) as image:
            assert image.width == 2 * (40 if "deep" in picture else 64)


def test_a_second_run_does_no_photo_twice(scenes, whole):
    before, files, seen = times(whole), tree(whole), []
    counts = run(scenes, whole, on_progress=lambda *arguments: seen.append(arguments), **ALL)
    assert counts == Counts(done=5, failed=0, left=0)
    assert seen == []
    assert times(whole) == before
    assert tree(whole) == files


def test_photos_that_come_later_are_labelled_alone(photos, out):
    run(photos, out)
    before, seen = times(out), []
    draw(photos / "x.bmp", 7)
    draw(photos / "sub" / "new.png", 8)
    run(photos, out, on_progress=names_into(seen))
    assert sorted(seen) == ["sub/new", "x_bmp"]
    after = times(out)
    assert {path: after[path] for path in before} == before
    assert report(out)["summary"]["done"] == 7


@pytest.mark.parametrize(
    ("lost", "lose"),
    [
        ("png/sub/y.png", Path.unlink),
        ("thumbnails/sub/y.jpg", Path.unlink),
        ("coco/.parts/sub/y.jsonl", Path.unlink),
        ("png/sub/y.png", lambda path: os.truncate(path, 0)),  # as a crash of the system may
    ],
)
def test_a_file_that_is_gone_is_made_again(lost, lose, scenes, whole, out):
    shutil.copytree(whole, out)
    lose(out / lost)
    seen = []
    run(
        scenes,
        out,
        on_progress=names_into(seen),
        **ALL,
    )
    assert seen == ["sub/y"]
    assert tree(out).keys() == tree(whole).keys()
    for name in NAMES:
        same(labels(out, name), labels(whole, name))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cleaning": Cleaning(confidence=0.5)}, "cleaning.confidence: 0.4 there, 0.5 wanted"),
        ({"options": Options(short_side=32)}, "options.short_side: 160 there, 32 wanted"),
        ({"formats": ("png",)}, "formats: "),
        (
            {"model": replace(MODEL, precision="bfloat16")},
            "precision: 'float32' there, 'bfloat16' wanted",
        ),
        ({"model": replace(MODEL, method="published"), "formats": ("png",)}, "method: 'clean' the"),
        (
            {"model": replace(MODEL, method=replace(PUBLISHED, name="mine")), "formats": ("png",)},
            "method: 'clean' there, {'name': 'mine', ",
        ),
        ({"vocabulary": Vocabulary.parse(["dog"])}, "vocabulary.names: "),
    ],
)
def test_other_settings_are_refused_and_nothing_is_touched(fields, message, scenes, whole):
    before = tree(whole)
    wanted = replace(job(whole, **ALL), **fields)
    for act in (plan_labels, label_photos):
        with pytest.raises(LabelingError, match=re.escape(message)):
            act(wanted, find_sources([scenes]))
    assert tree(whole) == before


def test_a_plan_says_what_would_be_done_and_writes_nothing(photos, out):
    wanted = job(out, formats=("coco", "png"))
    plan = plan_labels(wanted, find_sources([photos]))
    assert plan.counts == Counts(done=0, failed=0, left=5)
    names = ("panoptic/sub/deep/y.png", ".parts/sub/deep/y.jsonl", "panoptic/sub/y.png")
    assert plan.first == tuple(out / "coco" / name for name in names)
    assert not out.exists()
    label_photos(wanted, find_sources([photos]), device="cpu")
    draw(photos / "new.png", 7)
    before = times(out), tree(out), (out / MANIFEST).read_bytes()
    auto = replace(wanted, model=replace(MODEL, precision="auto"))
    plan = plan_labels(auto, find_sources([photos]))
    assert plan.counts == Counts(done=5, failed=0, left=1)
    assert plan.first == (out / "coco/panoptic/new.png", out / "coco/.parts/new.jsonl")
    assert (times(out), tree(out), (out / MANIFEST).read_bytes()) == before


def test_a_broken_image_costs_no_other_and_is_tried_again(photos, out):
    broken = photos / "sub" / "<b>.jpg"
    broken.write_bytes(b"\xff\xd8\xff no image")
    assert run(photos, out) == Counts(done=5, failed=1, left=0)
    (entry,) = (entry for entry in report(out)["photos"] if "error" in entry)
    assert entry["photo"] == "sub/<b>.jpg"
    assert entry["error"].startswith(f"{broken}: ")
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "Failed (1)" in text
    assert "sub/&lt;b&gt;.jpg: " in text
    assert "<b>.jpg" not in text
    assert run(photos, out) == Counts(done=5, failed=1, left=0)
    draw(broken, 7)
    assert run(photos, out) == Counts(done=6, failed=0, left=0)
    assert labels(out, "sub/<b>").shape == (64, 64)
    assert "&lt;b&gt;" in (out / "report.html").read_text(encoding="utf-8")


def test_a_photo_too_small_for_the_method_fails_alone(photos, out, make_model, monkeypatch):
    clip = make_model(vision={"layers": 10, "head_width": 16})  # patches of 8 px
    model = CLIPSegmenter(
        clip,
        method=SCCLIP,
        device=torch.device("cpu"),
        precision="float32",
        templates="plain",
    )
    monkeypatch.setattr(worker_module, "load", lambda *_, **__: model)
    for name in ("tiny.png", "other tiny.png"):
        draw(photos / name, 9, size=40)
    counts = run(photos, out, options=Options(short_side=0))
    assert counts == Counts(len(SIZES), 2, 0)
    failed = [entry for entry in report(out)["photos"] if "error" in entry]
    assert {entry["photo"] for entry in failed} == {"tiny.png", "other tiny.png"}
    for entry in failed:
        assert re.search(r"tiny\.png: .*'scclip' needs .* 40x40 px have 25", entry["error"])
    with pytest.raises(MaskCLIPError, match=r"'scclip' needs .* 20x5 px have 3"):
        run(photos, out / "new", options=Options(short_side=5, long_side=20))


def test_labels_that_were_begun_keep_the_method_that_auto_became(photos, out, monkeypatch):
    model, sources = replace(MODEL, name="emoji-vit", method="auto"), find_sources([photos])
    chosen = []

    def go_on(**changes):
        whole = job(out, model=replace(model, **changes))
        note = lambda *choice: chosen.append(choice)  # noqa: E731
        return label_photos(whole, sources, device="cpu", on_choice=note)

    plain = plan_labels(job(out, model=model), sources)
    assert plain.counts.left == len(SIZES)
    monkeypatch.setattr(segmenter, "choose", lambda *_: Choice(NACLIP, "for a test"))
    assert go_on() == Counts(len(SIZES), 0, 0)
    monkeypatch.undo()  # now it would be `clean`
    settings = report(out)["settings"]
    assert (settings["method"], settings["auto"]) == ("naclip", "for a test")
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "emoji-vit, method naclip (auto: for a test), " in text
    before = tree(out / "png")
    (out / "png" / "x.png").unlink()
    assert plan_labels(job(out, model=model), sources).counts.left == 1
    assert go_on() == Counts(len(SIZES), 0, 0)
    reasons = ("for a test", "as when these labels were begun")
    assert chosen == [("method", "naclip", reason) for reason in reasons]
    assert tree(out / "png") == before
    assert report(out)["settings"] == settings
    with pytest.raises(LabelingError, match="method: 'naclip' there, 'clean' wanted"):
        go_on(method="clean")
    go_on(method="naclip")  # as good as `auto`
    assert len(chosen) == 2


def test_labels_that_were_begun_keep_the_runtime_that_auto_became(photos, out, monkeypatch):
    sources, chosen = find_sources([photos]), []

    def go_on(runtime="auto"):
        note = lambda *choice: chosen.append(choice)  # noqa: E731
        whole = replace(job(out), runtime=runtime)
        return label_photos(whole, sources, device="cpu", on_choice=note)

    def fake(own, runtime):
        if runtime != "torch":
            own.encode_by(own._encode, "openvino", why="for a test" if runtime == "auto" else "")

    monkeypatch.setattr(segmenter, "run_by", fake)
    assert go_on() == Counts(len(SIZES), 0, 0)
    assert report(out)["settings"]["runtime"] == "openvino"
    (out / "png" / "x.png").unlink()
    assert plan_labels(replace(job(out), runtime="auto"), sources).counts.left == 1
    assert go_on() == Counts(len(SIZES), 0, 0)
    reasons = ("for a test", "as when these labels were begun")
    assert chosen == [("runtime", "openvino", reason) for reason in reasons]
    with pytest.raises(LabelingError, match="runtime"):
        go_on("torch")


def test_broken_images_alone_leave_a_report(out, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.jpg").touch()
    assert run(tmp_path / "photos", out) == Counts(done=0, failed=1, left=0)
    assert report(out)["summary"]["coverage"] == 0
    assert "an empty file" in (out / "report.html").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_not_utf8_is_written_in_ascii(photos, out):
    name = os.fsdecode(b"\xff")
    draw(photos / "plain.png", 7)
    (photos / "plain.png").rename(photos / f"{name}.png")
    (photos / f"{name}.jpg").touch()
    assert run(photos, out, **ALL) == Counts(done=6, failed=1, left=0)
    assert labels(out, "\\udcff_png").shape == (64, 64)
    assert "udcff.jpg: an empty file" in (out / "report.html").read_text(encoding="utf-8")


def test_a_full_disk_stops_it_and_going_on_leaves_the_files_of_an_unbroken_run(
    scenes, whole, out, monkeypatch
):
    plain, calls = Probabilities.write, []

    def full(self, item):
        calls.append(item.name)
        if len(calls) > 2:
            path = self.files(item.name)[0]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        plain(self, item)

    monkeypatch.setattr(Probabilities, "write", full)
    message = r"\.npz: cannot be written \(No space left on device\)\. .* same command to resume"
    with pytest.raises(LabelingError, match=message):
        run(scenes, out, **ALL)
    assert not list(out.rglob(".writing-*"))
    assert not (out / "report.json").exists()
    monkeypatch.undo()
    assert run(scenes, out, **ALL) == Counts(done=5, failed=0, left=0)
    assert tree(out) == tree(whole)


def test_a_name_that_is_too_long_is_one_photos_failure(photos, out):
    draw(photos / f"{'n' * 251}.png", 7)
    assert run(photos, out, formats=("png", "coco")) == Counts(done=5, failed=1, left=0)
    (entry,) = (entry for entry in report(out)["photos"] if "error" in entry)
    assert entry["error"].endswith("nnn.png: cannot be written (File name too long)")
    assert run(photos, out, formats=("png", "coco")) == Counts(done=5, failed=1, left=0)


def test_a_folder_called_like_the_file_of_another_photo_is_one_photos_failure(photos, out):
    draw(photos / "y.png" / "inner.png", 7)
    draw(photos / "y.bmp", 8)
    assert run(photos, out) == Counts(done=6, failed=1, left=0)


OUT_OF_MEMORY = [  # of CUDA, the CPU, MPS, cuBLAS and NumPy
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:20])
def test_what_is_too_much_for_the_memory_is_read_in_smaller_batches(
    error, scenes, whole, out, monkeypatch
):
    plain, sizes = worker_module.read_maps, []

    def small(seen, outputs, *arguments):
        sizes.append(len(seen))
        if len(seen) > 1:
            raise error
        return plain(seen, outputs, *arguments)

    monkeypatch.setattr(worker_module, "read_maps", small)
    assert run(scenes, out, **ALL) == Counts(done=5, failed=0, left=0)
    assert max(sizes) > 1
    for name in NAMES:
        same(labels(out, name), labels(whole, name))


def test_a_photo_that_is_too_large_for_the_memory_fails_alone(scenes, out, monkeypatch):
    plain = worker_module.read_maps

    def small(seen, outputs, *arguments):
        if (64, 40) in outputs:
            raise torch.OutOfMemoryError
        return plain(seen, outputs, *arguments)

    monkeypatch.setattr(worker_module, "read_maps", small)
    assert run(scenes, out) == Counts(done=4, failed=1, left=0)
    assert "deep/y.png: too large for the memory of the device" in (out / "report.html").read_text(
        encoding="utf-8"
    )


def test_another_error_of_the_network_is_no_want_of_memory(scenes, out, monkeypatch):
    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(worker_module, "read_maps", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        run(scenes, out)


def test_a_photo_whose_labels_are_too_large_for_the_memory_fails_alone(scenes, out, monkeypatch):
    plain = worker_module.clean

    def small(labels, *arguments):
        if labels.shape == (64, 40):
            raise MemoryError
        return plain(labels, *arguments)

    monkeypatch.setattr(worker_module, "clean", small)
    assert run(scenes, out) == Counts(done=4, failed=1, left=0)
    (failure,) = (photo for photo in report(out)["photos"] if "error" in photo)
    assert failure["error"].endswith("deep/y.png: too large for the memory that is free")


def test_a_photo_that_needs_more_memory_than_is_free_is_reported_before_it_is_read(
    scenes, out, monkeypatch
):
    monkeypatch.setattr(worker_module, "LARGE_PIXELS", 3_000)
    monkeypatch.setattr(worker_module, "free_memory", lambda: 30_000)
    assert run(scenes, out) == Counts(done=2, failed=3, left=0)
    failures = [photo["error"] for photo in report(out)["photos"] if "error" in photo]
    assert "4,096 pixels take about 0.0 GB of memory, and 0.0 GB are free" in failures[0]
    monkeypatch.setattr(worker_module, "free_memory", lambda: None)  # unknown: it is tried
    assert run(scenes, out) == Counts(done=5, failed=0, left=0)


def test_a_large_jpeg_is_read_reduced_and_labelled_at_its_size(out, tmp_path, monkeypatch):
    draw(tmp_path / "photos" / "large.jpg", 3, size=1024)
    fields = {"formats": ("png", "overlay"), "options": Options(short_side=96)}
    run(tmp_path / "photos", tmp_path / "plain", **fields)
    plain, sizes = worker_module.network_input, []

    def noted(photo, *arguments):
        sizes.append(photo.size)
        return plain(photo, *arguments)

    monkeypatch.setattr(worker_module, "network_input", noted)
    monkeypatch.setattr(worker_module, "LARGE_PIXELS", 1_000_000)
    run(tmp_path / "photos", out, **fields)
    assert sizes == [(256, 256)]
    assert (labels(out, "large") == labels(tmp_path / "plain", "large")).mean() > 0.97


@pytest.mark.parametrize("part", [slice(0, 1), slice(None)])
def test_values_that_are_not_finite_are_a_failure(part, scenes, out, monkeypatch):
    plain = worker_module.read_maps

    def overflown(*arguments):
        found = plain(*arguments)
        for photo in found:
            photo.maps[..., part, :] = float("nan")
        return found

    monkeypatch.setattr(worker_module, "read_maps", overflown)
    assert run(scenes, out) == Counts(done=0, failed=5, left=0)
    assert "not finite: try `precision=float32`" in (out / "report.html").read_text()


@pytest.mark.parametrize("method", ["published", "baseline"])
def test_another_method_gives_its_labels_and_its_name(method, scenes, out):
    model = replace(MODEL, method=method)
    assert run(scenes, out, model=model).done == 5
    segmenter = maskclip.load(model, device="cpu")
    found = segmenter.segment(scenes / "sub/y.png", WORDS, short_side=160, refine=())
    same(labels(out, "sub/y"), found.labels)
    assert report(out)["settings"]["method"] == method
    assert f"emoji, method {method}, 5 classes" in (out / "report.html").read_text()
    with pytest.raises(MaskCLIPError, match=r"probabilities needs .*take the method clean"):
        job(out, model=model, formats=("png", "probabilities"))


def test_large_photos_are_read_again_and_written_one_by_one(scenes, out, tmp_path, monkeypatch):
    formats = ("overlay", "json", "scores")
    assert run(scenes, out, formats=formats) == Counts(done=5, failed=0, left=0)
    monkeypatch.setattr(worker_module, "_KEPT_PIXELS", 0)
    monkeypatch.setattr(worker_module, "LARGE_PIXELS", 0)
    assert run(scenes, tmp_path / "again", formats=formats) == Counts(done=5, failed=0, left=0)
    assert tree(tmp_path / "again") == tree(out)
    with Image.open(out / "overlay" / "sub" / "y_overlay.png") as image:
        assert image.width >= 64


def test_a_photo_that_changes_meanwhile_is_a_failure(photos, out, monkeypatch):
    plain, calls = worker_module.read_maps, []

    def changed(*arguments):
        if not calls:  # all photos are read, and none is written yet
            draw(photos / "sub/y.png", 9, size=48)
        calls.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr(worker_module, "_KEPT_PIXELS", 0)
    monkeypatch.setattr(worker_module, "read_maps", changed)
    assert run(photos, out, formats=("overlay",)) == Counts(done=4, failed=1, left=0)
    assert "sub/y.png: changed while it was" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("how", ["moved", "removed", "replaced"])
def test_a_folder_of_results_that_is_taken_away_ends_it(how, photos, out, monkeypatch):
    monkeypatch.setattr(manifest, "CHUNK", 1)
    seen = []

    def take(outcomes, _):
        seen.extend(outcomes)
        if len(seen) > 1:
            return
        if how == "removed":
            while (out / MANIFEST).exists():  # other photos are being written there
                shutil.rmtree(out, ignore_errors=True)
        else:
            out.rename(out.with_name("elsewhere"))
        if how == "replaced":
            out.mkdir()
            (out / MANIFEST).touch()

    with pytest.raises(LabelingError, match="was moved or removed meanwhile") as told:
        run(photos, out, on_progress=take)
    assert str(out) in str(told.value)
    assert len(seen) == 1
    if how == "moved":
        shutil.rmtree(out, ignore_errors=True)  # what was written since
        out.with_name("elsewhere").rename(out)
        assert run(photos, out) == Counts(done=5, failed=0, left=0)


def test_what_is_recorded_is_on_the_disk(photos, out, monkeypatch):
    plain_sync, plain_record, on_disk = os.fsync, Manifest.record, set()

    def sync(handle):
        on_disk.add(os.fstat(handle).st_ino)
        plain_sync(handle)

    def record(self, outcomes):
        for outcome in outcomes:
            for path in (out / f"png/{outcome.task.name}.png", out / "thumbnails"):
                assert path.stat().st_ino in on_disk
        plain_record(self, outcomes)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Manifest, "record", record)
    assert run(photos, out).done == 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_among_the_photos_is_not_waited_for(photos, out):
    os.mkfifo(photos / "pipe.jpg")
    (photos / "film.mp4").touch()
    with pytest.warns(MaskCLIPWarning, match="a pipe, socket or device"):
        assert run(photos, out) == Counts(done=5, failed=0, left=0)
    line = report(out)["left_out"]
    assert "1 file left out: .mp4 1" in line
    assert str(photos / "pipe.jpg") in line
    assert "1 file left out: .mp4 1" in (out / "report.html").read_text(encoding="utf-8")
    named = [Source(photos / "pipe.jpg", "pipe.jpg")]  # by --list
    assert label_photos(job(out), named, device="cpu") == Counts(done=5, failed=1, left=0)


def test_names_of_dots_are_handled_once(out, tmp_path):
    photos = tmp_path / "photos"
    draw(photos / "a..jpg", 1)
    for name in ("...jpg", "..jpg"):
        shutil.copy(photos / "a..jpg", photos / name)
    sources = find_sources([photos / "...jpg", f"{photos}/./...jpg", photos / "..jpg", photos])
    for _ in range(2):
        counts = label_photos(job(out), sources, device="cpu")
        assert counts == Counts(done=3, failed=0, left=0)
    assert plan_labels(job(out), sources).counts.left == 0


def test_an_unknown_class_is_refused_before_any_work(scenes, out):
    with pytest.raises(MaskCLIPError, match="'cat', which is not one of"):
        run(scenes, out, cleaning=Cleaning(by_class={"cat": 0.5}))
    assert tree(out) == {}


def test_another_labelling_in_the_folder_is_refused(scenes, tmp_path):
    with Manifest(tmp_path / MANIFEST), pytest.raises(LabelingError, match="is in use"):
        run(scenes, tmp_path)


def test_a_student_labels_its_own_classes(scenes, out, tmp_path):
    path = tmp_path / "student.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = torch.nn.functional.normalize(torch.randn(len(WORDS), 8), dim=1)
        student = build_student(StudentConfig(depth=50, width=8, embed_dim=8), rows).eval()
    save_student(TrainedStudent(student, WORDS, 5), path)
    model = ModelConfig(name=str(path), precision="float32")
    wanted = job(out, model=model, vocabulary=None)
    sources = find_sources([scenes])
    assert plan_labels(wanted, sources).counts.left == 5
    assert label_photos(wanted, sources, device="cpu").done == 5
    segmenter = maskclip.load(str(path), precision="float32", device="cpu")
    same(labels(out, "sub/y"), segmenter.segment(scenes / "sub/y.png", short_side=160).labels)
    assert report(out)["settings"]["vocabulary"] == WORDS.to_dict()
    assert plan_labels(wanted, sources).counts == Counts(done=5, failed=0, left=0)
    save_student(TrainedStudent(student, WORDS, 6), path)
    with pytest.raises(LabelingError, match="weights: "):
        label_photos(wanted, sources, device="cpu")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("kills", [3, pytest.param(22, marks=pytest.mark.full)])
def test_killed_at_any_moment_it_goes_on_to_the_files_of_an_unbroken_run(
    kills, tmp_path, monkeypatch, tally
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(manifest, "CHUNK", 4)
    photos, out = tmp_path / "photos", tmp_path / "out"
    count = 16 * kills
    for seed in range(count):
        draw(photos / f"{seed % 3}" / f"{seed}.png", seed, 32)
    fields = {"formats": ("png", "coco", "probabilities"), "cleaning": Cleaning(min_region=4)}
    run(photos, tmp_path / "whole", **fields)
    with pytest.raises(StoppedError):
        run(photos, out, on_progress=stop, **fields)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["maskclip.tasks.label.pipeline", "open_clip"])
    wanted, sources = job(out, **fields), find_sources([photos])

    def start():
        process = context.Process(
            target=label_photos, args=(wanted, sources), kwargs={"device": "cpu"}
        )
        process.start()
        return process

    def written():
        return sum(1 for _ in (out / "png").rglob("*.png"))

    generator, recorded = random.Random(0), {}
    for _ in range(kills):
        process, enough = start(), written() + generator.randrange(1, 8)
        while written() < enough and process.is_alive():
            time.sleep(0.001)
        time.sleep(generator.choice([0, 0.005, 0.02, 0.05]) * generator.random())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        tally("kills of `label`")
        with Manifest(out / MANIFEST) as kept:
            done = [out / "png" / f"{outcome.task.name}.png" for outcome in kept.outcomes()]
        recorded = {path: path.stat().st_mtime_ns for path in done} | recorded
        assert 0 < len(recorded) < count
    assert run(photos, out, **fields) == Counts(done=count, failed=0, left=0)
    assert tree(out) == tree(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in recorded} == recorded


def put_segments(folder, name, size, *, step):
    """Write a label map whose segments are stripes."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.broadcast_to(1 + np.arange(size[1]) // step, size).astype(np.uint8)
    Image.fromarray(stripes).save(path)


def test_segments_vote_and_a_changed_map_is_a_changed_photo(scenes, tmp_path):
    maps, out, seen = tmp_path / "maps", tmp_path / "out", []
    by_maps = {"options": Options(short_side=160, regions=str(maps))}
    for name, size in (("x.jpg", (64, 64)), ("x.png", (48, 64)), ("sub/y", (64, 64))):
        put_segments(maps, f"{name}.png", size, step=8)
    put_segments(maps, "z ü.png", (64, 60), step=8)
    with pytest.warns(MaskCLIPWarning, match=r"1 of 5 photos have no label map in .*maps, and"):
        counts = run(scenes, out, **by_maps)
    assert counts == Counts(done=3, failed=2, left=0)
    errors = [photo["error"] for photo in report(out)["photos"] if "error" in photo]
    assert "no label map of its segments" in errors[0]
    assert "z ü.png: the label map is 60x64 but its image 64x64" in errors[1]
    stripes = labels(out, "x").reshape(64, 8, 8).transpose(1, 0, 2).reshape(8, -1)
    assert (stripes == stripes[:, :1]).all()

    put_segments(maps, "sub/deep/y.png", (64, 40), step=8)
    put_segments(maps, "sub/y.png.png", (64, 64), step=16)
    (maps / "sub/y.png").unlink()
    (maps / "x.png.png").unlink()  # of a photo that is done: nothing is known of it
    put_segments(maps, "z ü.png", (64, 64), step=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MaskCLIPWarning)  # nor is anything said of it
        counts = run(scenes, out, on_progress=names_into(seen), **by_maps)
    assert counts == Counts(done=5, failed=0, left=0)
    assert seen == ["sub/deep/y", "sub/y", "z ü"]
    with pytest.raises(LabelingError, match=r"options\.regions: .* there, 'slic' wanted"):
        run(scenes, out, options=Options(short_side=160, regions="slic"))


def test_segments_vote_before_labels_are_dropped(scenes, tmp_path):
    options = Options(short_side=160, regions="slic")
    run(scenes, tmp_path / "all", options=options, formats=("png", "scores"))
    cleaning = Cleaning(confidence=0.6, min_region=300)
    run(scenes, tmp_path / "kept", options=options, cleaning=cleaning)
    voted = labels(tmp_path / "all", "x")
    with Image.open(next((tmp_path / "all" / "scores").glob("x[._]*"))) as image:
        scores = (np.asarray(image) / 255).astype(np.float32)
    kept = clean(voted, scores, cleaning, WORDS)
    assert (kept == labels(tmp_path / "kept", "x")).mean() > 0.99  # scores are of 8 bits there


def test_no_map_of_any_photo_is_reported_before_a_model_is_loaded(scenes, tmp_path, monkeypatch):
    put_segments(tmp_path / "maps", "other.png", (64, 64), step=8)
    monkeypatch.setattr(worker_module, "load", None)
    options = Options(regions=str(tmp_path / "maps"))
    with pytest.raises(MaskCLIPError, match="no label map of its segments"):
        run(scenes, tmp_path / "out", options=options)
    with pytest.raises(MaskCLIPError, match="no folder of label maps"):
        run(scenes, tmp_path / "out", options=Options(regions="nowhere"))


def test_a_proxy_is_one_of_the_settings(scenes, tmp_path):
    model = replace(MODEL, name="emoji-vit", proxy="vit_tiny_patch16_224:random")
    fields = {"model": model, "options": Options(short_side=64)}
    assert run(scenes, tmp_path / "out", **fields) == Counts(done=5, failed=0, left=0)
    settings = report(tmp_path / "out")["settings"]
    assert settings["proxy"] == "vit_tiny_patch16_224:random"
    assert re.fullmatch("[0-9a-f]{16}[+][0-9a-f]{16}", settings["weights"])
    with pytest.raises(LabelingError, match=r"proxy: 'vit_tiny_.* there, None wanted"):
        run(scenes, tmp_path / "out", **(fields | {"model": replace(model, proxy=None)}))
