"""The whole chain on real files: truths as predictions, with scores computed independently."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from maskclip.cli import main
from maskclip.data.datasets import open_dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory, real_data):
    """The real pairs, with the masks of COCO-Stuff made from its label files."""
    root = tmp_path_factory.mktemp("data")
    for link in ("VOCdevkit", "coco_stuff164k/images", "coco_stuff164k/stuffthingmaps"):
        (root / link).parent.mkdir(exist_ok=True)
        (root / link).symlink_to(real_data / link, target_is_directory=True)
    assert main(["data", "convert", "cocostuff", "--data", str(root), "--workers", "1"]) == 0
    return root


def predict(root, name, split, folder, change):
    """Write the truth of a data set, changed, as predictions; return all (truth, prediction)."""
    dataset = open_dataset(name, root, split=split)
    pairs = []
    for index in range(len(dataset)):
        sample = dataset[index]
        found = change(np.where(sample.labels == 255, 0, sample.labels))
        folder.mkdir(exist_ok=True)
        Image.fromarray(found.astype(np.uint8)).save(folder / f"{sample.name}.png")
        pairs.append((sample.labels, found))
    return pairs


def shifted(ids):
    return np.roll(ids, (9, 14), axis=(0, 1))


def independent(pairs, classes):
    """The scores, counted class by class without the product's code."""
    iou = {}
    for one in range(classes):
        shared = union = 0
        for truth, found in pairs:
            labeled = truth != 255
            shared += int(((truth == one) & (found == one) & labeled).sum())
            union += int((((truth == one) | (found == one)) & labeled).sum())
        if union:
            iou[one] = 100 * shared / union
    right = sum(int(((truth == found) & (truth != 255)).sum()) for truth, found in pairs)
    total = sum(int((truth != 255).sum()) for truth, _ in pairs)
    return iou, 100 * right / total


@pytest.mark.parametrize("change", [lambda ids: ids, shifted], ids=["truth", "shifted"])
@pytest.mark.parametrize(
    ("name", "split", "classes"),
    [("voc20", "val", 20), ("voc21", "val", 21), ("cocostuff171", "train", 171)],
)
def test_truths_score_100_and_shifted_ones_what_numpy_says(
    root, tmp_path, capsys, name, split, classes, change
):
    pairs = predict(root, name, split, tmp_path / "found", change)
    command = ["eval", name, "--data", str(root), "--split", split]
    command += ["--predictions", str(tmp_path / "found"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    iou, accuracy = independent(pairs, classes)
    found = {i: value for i, value in enumerate(result["iou"].values()) if value is not None}
    assert found == pytest.approx(iou, abs=1e-9)
    assert result["miou"] == pytest.approx(np.mean(list(iou.values())), abs=1e-9)
    assert result["pixel_accuracy"] == pytest.approx(accuracy, abs=1e-9)
    printed = capsys.readouterr().out
    assert f"mIoU {np.mean(list(iou.values())):.2f} %" in printed
    if change is not shifted:
        assert "mIoU 100.00 %" in printed
    assert f"{len(pairs)} of " in printed


def test_half_a_data_set_gives_no_score(real_data, tmp_path, capsys):
    home = tmp_path / "VOCdevkit" / "VOC2012"
    shutil.copytree(real_data / "VOCdevkit" / "VOC2012" / "ImageSets", home / "ImageSets")
    for folder in ("JPEGImages", "SegmentationClass"):
        shutil.copytree(real_data / "VOCdevkit" / "VOC2012" / folder, home / folder)
    names = (home / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    (home / "SegmentationClass").chmod(0o755)
    (home / "SegmentationClass" / f"{names[5]}.png").unlink()
    command = ["eval", "voc20", "--data", str(tmp_path), "--model", "emoji", "--templates", "plain"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert "mIoU" not in captured.out
    errors = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "1 of 36 files are missing, the first" in errors[0]
    assert f"{names[5]}.png: see `maskclip data check`" in errors[0]
    assert not (tmp_path / "out").exists()
