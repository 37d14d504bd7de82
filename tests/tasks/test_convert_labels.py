import json
import os
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from PIL import Image
from scipy.io import savemat
from typer.testing import CliRunner

from maskclip.cli.data import convert
from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import printable
from maskclip.data.conversions import CONVERSIONS
from maskclip.tasks import convert_labels as task
from maskclip.tasks.convert_labels import convert_files, plan_conversion, write_split_lists

COCO_SOURCE = "coco_stuff164k/stuffthingmaps"
COCO_MASKS = "coco_stuff164k/annotations"
VOC_LISTS = "VOCdevkit/VOC2012/ImageSets/Segmentation"


def save_labels(path, seed=0):
    """Write random raw labels of COCO."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.random.default_rng(seed).integers(0, 10, (6, 8), dtype=np.uint8)
    Image.fromarray(labels).save(path)


@pytest.fixture
def coco(tmp_path):
    """Write five label files in COCO's layout and return the root."""
    for seed in range(4):
        save_labels(tmp_path / COCO_SOURCE / "train2017" / f"{seed:012}.png", seed)
    save_labels(tmp_path / COCO_SOURCE / "val2017" / "000000000139.png", 9)
    return tmp_path


@pytest.fixture
def voc(tmp_path):
    """Write VOC's lists and four of SBD's files, one of them of a validation image."""
    for name in ("both", "s1", "s2", "v1"):
        path = tmp_path / "VOCdevkit" / "VOCaug" / "dataset" / "cls" / f"{name}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"GTcls": {"Segmentation": np.full((2, 3), 5, np.uint8)}})
    folder = tmp_path / VOC_LISTS
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("t1\nboth\n")
    (folder / "val.txt").write_text("v1\nv2\n")
    return tmp_path


def run(root, name="cocostuff", *, source=None, **options):
    return list(convert_files(plan_conversion(name, root, source=source), **options))


def masks(root, folder=COCO_MASKS):
    """Relative path -> content of every file below a folder."""
    return {
        path.relative_to(root / folder).as_posix(): path.read_bytes()
        for path in (root / folder).rglob("*")
        if path.is_file()
    }


class TestFinding:
    def test_every_file_has_a_mask_of_its_own(self, coco):
        results = run(coco)
        assert [result.error for result in results] == [None] * 5
        assert sorted(masks(coco)) == [
            *(f"train2017/{seed:012}_labelTrainIds.png" for seed in range(4)),
            "val2017/000000000139_labelTrainIds.png",
        ]
        assert all(result.target.exists() for result in results)

    def test_raw_labels_may_lie_among_the_masks(self, tmp_path):
        for name in ("000000000001.png", "000000000002.png"):
            save_labels(tmp_path / COCO_MASKS / "train2017" / name)
        (tmp_path / COCO_MASKS / "train2017" / ".writing-x.png").write_bytes(b"half")
        assert len(run(tmp_path)) == 2
        again = run(tmp_path)
        assert [result.skipped for result in again] == [True, True]
        assert len(masks(tmp_path)) == 2 + 2 + 1

    def test_suffixes_in_upper_case_are_found(self, tmp_path):
        save_labels(tmp_path / COCO_SOURCE / "train2017" / "000000000001.PNG")
        assert [result.error for result in run(tmp_path)] == [None]
        assert list(masks(tmp_path)) == ["train2017/000000000001_labelTrainIds.png"]

    def test_another_source(self, coco, tmp_path_factory):
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        (coco / COCO_SOURCE).rename(elsewhere / "maps")
        assert len(run(coco, source=elsewhere / "maps")) == 5
        assert len(masks(coco)) == 5

    def test_cityscapes_masks_lie_beside_their_sources(self, tmp_path):
        folder = tmp_path / "cityscapes" / "gtFine" / "val" / "ulm"
        folder.mkdir(parents=True)
        Image.new("L", (4, 2), 26).save(folder / "ulm_0_gtFine_labelIds.png")
        Image.new("RGB", (4, 2)).save(folder / "ulm_0_gtFine_color.png")
        (result,) = run(tmp_path, "cityscapes")
        assert result.target == folder / "ulm_0_gtFine_labelTrainIds.png"
        assert np.asarray(Image.open(result.target)).tolist() == [[13] * 4] * 2
        (result,) = run(tmp_path, "cityscapes")
        assert result.skipped

    def test_a_linked_folder_is_entered(self, tmp_path, tmp_path_factory):
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        (elsewhere / "ulm").mkdir()
        Image.new("L", (4, 2), 26).save(elsewhere / "ulm" / "ulm_0_gtFine_labelIds.png")
        (tmp_path / "cityscapes" / "gtFine").mkdir(parents=True)
        (tmp_path / "cityscapes" / "gtFine" / "val").symlink_to(elsewhere)
        assert len(run(tmp_path, "cityscapes")) == 1

    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("voc-aug", ["VOCdevkit/VOCaug/dataset/cls/*.mat", "holds VOCdevkit"]),
            ("context", ["VOC2010/trainval/*.mat or", "VOC2010/trainval/*.png", "holds VOCdevkit"]),
            ("cocostuff", ["coco_stuff164k/stuffthingmaps/*2017", "holds coco_stuff164k"]),
            ("cityscapes", ["cityscapes/gtFine/", "labelIds.png", "holds cityscapes"]),
        ],
    )
    def test_a_missing_folder_is_an_error_with_the_layout(self, tmp_path, name, parts):
        with pytest.raises(MaskCLIPError) as caught:
            plan_conversion(name, tmp_path)
        assert all(part in str(caught.value) for part in (str(tmp_path), *parts))

    def test_a_source_without_label_files_is_an_error(self, coco):
        with pytest.raises(MaskCLIPError, match=r"stuffthingmaps/\*\.mat or "):
            plan_conversion("context", coco, source=coco / COCO_SOURCE)

    @pytest.mark.parametrize("name", list(CONVERSIONS))
    def test_a_source_that_is_not_there_is_said_to_be_missing(self, tmp_path, name):
        with pytest.raises(MaskCLIPError, match=r"no such file or folder: .*gone\.json$"):
            plan_conversion(name, tmp_path, source=tmp_path / "gone.json")

    def test_an_unknown_name_is_an_error_with_the_known_ones(self, tmp_path):
        with pytest.raises(MaskCLIPError, match="'coco': expected voc-aug, context, cocostuff"):
            plan_conversion("coco", tmp_path)

    def test_masks_never_replace_their_sources(self, tmp_path):
        folder = tmp_path / "VOCdevkit" / "VOC2010" / "SegmentationClassContext"
        save_labels(folder / "2008_000002.png")
        with pytest.raises(MaskCLIPError, match="would overwrite the label files"):
            plan_conversion("context", tmp_path, source=folder)

    def test_scipy_is_needed_for_matlab_files_only(self, voc, coco, monkeypatch):
        monkeypatch.setitem(sys.modules, "scipy", None)  # as if it were not installed
        with pytest.raises(MaskCLIPError, match=r"scipy.*pip install .*\[eval\]"):
            plan_conversion("voc-aug", voc)
        assert len(run(coco)) == 5


class TestObjects:
    """COCO-Object: 80 things and background, of label maps or of instances."""

    def test_label_maps_of_both_data_sets_lie_side_by_side(self, tmp_path):
        path = tmp_path / COCO_MASKS / "val2017" / "000000000139.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.array([[0, 12, 91, 255]], np.uint8)).save(path)
        for name, expected in (("cocoobject", [1, 12, 0, 255]), ("cocostuff", [0, 11, 80, 255])):
            (result,) = run(tmp_path, name)  # masks that were made are no label maps
            assert np.asarray(Image.open(result.target)).tolist() == [expected]
        assert len(masks(tmp_path)) == 3

    @staticmethod
    def write_instances(path, **changes):
        """Three photos of 8 x 6 px: a dog before a person, a car in run lengths, nothing."""
        square = [1, 1, 3, 1, 3, 3, 1, 3]
        wide = [0, 0, 6, 0, 6, 6, 0, 6]
        content = {
            "images": [
                {"id": number, "file_name": f"{number:012}.jpg", "width": 8, "height": 6}
                for number in (1, 2, 3)
            ],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 18, "segmentation": [square]},
                {"id": 2, "image_id": 1, "category_id": 1, "segmentation": [wide]},
                {
                    **{"id": 3, "image_id": 2, "category_id": 3, "iscrowd": 1},
                    "segmentation": {"size": [6, 8], "counts": [0, 12, 36]},
                },
            ],
            "categories": [
                {"id": 1, "name": "person"},
                {"id": 3, "name": "car"},
                {"id": 18, "name": "dog"},
            ],
        } | changes
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return path

    EXPECTED = (
        [[1] * 6 + [0] * 2, [1, 17, 17, 1, 1, 1, 0, 0], [1, 17, 17, 1, 1, 1, 0, 0]]
        + [[1] * 6 + [0] * 2] * 3,
        [[3, 3] + [0] * 6] * 6,
        [[0] * 8] * 6,
    )

    def test_the_smaller_instance_lies_over_the_larger(self, tmp_path):
        self.write_instances(tmp_path / COCO_MASKS / "instances_val2017.json")
        results = run(tmp_path, "cocoobject", workers=4)
        assert [result.error for result in results] == [None] * 3
        assert sorted(masks(tmp_path))[1:] == [
            f"val2017/{number:012}_instanceTrainIds.png" for number in (1, 2, 3)
        ]
        found = [np.asarray(Image.open(result.target)).tolist() for result in results]
        assert found == list(self.EXPECTED)
        assert all(result.skipped for result in run(tmp_path, "cocoobject"))

    def test_label_maps_come_before_instances_unless_these_are_named(self, coco):
        file = self.write_instances(coco / COCO_MASKS / "instances_val2017.json")
        assert len(plan_conversion("cocoobject", coco).files) == 5
        assert len(plan_conversion("cocoobject", coco, source=file).files) == 3

    def test_what_cannot_be_converted_is_reported_in_one_line(self, tmp_path):
        file = self.write_instances(tmp_path / "instances_val2017.json")
        with pytest.raises(MaskCLIPError, match="is a file: cocostuff needs a folder"):
            plan_conversion("cocostuff", tmp_path, source=file)
        with pytest.raises(MaskCLIPError, match=r"png or .*annotations/instances_\*2017\.json"):
            plan_conversion("cocoobject", tmp_path)
        other = tmp_path / "lists_val2017.json"
        other.write_text('{"images": []}')
        with pytest.raises(MaskCLIPError, match="expected COCO's instances: images, annotations"):
            plan_conversion("cocoobject", tmp_path, source=other)
        bad = {"id": 7, "image_id": 3, "category_id": 3, "segmentation": [[1, 2, 3]]}
        file = self.write_instances(tmp_path / "instances_val2017.json", annotations=[bad])
        results = run(tmp_path, "cocoobject", source=file)
        assert [result.error is None for result in results] == [True, True, False]
        assert "annotation 7: a polygon of 3 numbers" in results[2].error

    def test_photos_that_are_here_tell_the_split_of_a_file_of_any_name(self, tmp_path):
        file = self.write_instances(tmp_path / "mine.json")
        images = tmp_path / Path(COCO_MASKS).parent / "images"
        (images / "train2017").mkdir(parents=True)
        with pytest.raises(MaskCLIPError, match=r"none of .* lies in .*, such as instances_val2"):
            plan_conversion("cocoobject", tmp_path, source=file)
        (images / "val2017").mkdir()
        (images / "val2017" / f"{2:012}.jpg").touch()
        plan = plan_conversion("cocoobject", tmp_path, source=file)
        assert plan.files == tuple(f"val2017/{number:012}.jpg" for number in (1, 2, 3))
        (images / "train2017" / f"{3:012}.jpg").touch()
        with pytest.raises(MaskCLIPError, match=r"photos of both train2017 and val2017"):
            plan_conversion("cocoobject", tmp_path, source=file)
        named = file.rename(tmp_path / "mine_train2017.json")
        assert plan_conversion("cocoobject", tmp_path, source=named).files[0].startswith("train")

    def test_of_many_instances_a_few_are_held_at_once(self, tmp_path):
        image = {"id": 1, "file_name": "1.jpg", "width": 1000, "height": 1000}
        square = {"image_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
        file = self.write_instances(
            tmp_path / "instances_val2017.json",
            images=[image],
            annotations=[{**square, "id": n, "category_id": (18, 3)[n % 2]} for n in range(40)],
        )
        plan = plan_conversion("cocoobject", tmp_path, source=file)
        tracemalloc.start()
        try:
            (result,) = convert_files(plan)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert np.asarray(Image.open(result.target))[5, 5] == 3  # of one size, the last
        assert peak < 12 * 1000 * 1000  # the ids take four bytes a pixel, an instance one

    @pytest.mark.parametrize(
        ("stem", "why"),
        [
            ("a\0b", "it has a zero byte"),
            ("x" * 300, "it is longer than 255 bytes"),
            ("x" * 245, "it is longer than 255 bytes"),  # with the ending of masks
            ("\ud800", "it has half of a character"),
        ],
    )
    def test_a_name_that_no_file_can_have_is_one_line_and_the_others_go_on(
        self, tmp_path, stem, why
    ):
        images = [
            {"id": number, "file_name": f"{name}.jpg", "width": 8, "height": 6}
            for number, name in enumerate(("one", stem, "two"), start=1)
        ]
        file = self.write_instances(
            tmp_path / "instances_val2017.json", images=images, annotations=[]
        )
        results = run(tmp_path, "cocoobject", source=file)
        (error,) = [result.error for result in results if result.error is not None]
        assert why in error
        assert str(file) in error
        assert printable(error) == error
        assert sorted(path.name[:3] for path in (tmp_path / COCO_MASKS).rglob("*.png")) == [
            "one",
            "two",
        ]

    def test_names_in_a_file_lead_nowhere_else(self, tmp_path):
        away = {"id": 1, "file_name": "../../../away.jpg", "width": 8, "height": 6}
        file = self.write_instances(
            tmp_path / "instances_val2017.json", images=[away], annotations=[]
        )
        with pytest.raises(MaskCLIPError, match="no photo is listed by its plain name"):
            plan_conversion("cocoobject", tmp_path, source=file)


class TestResuming:
    def test_what_is_there_is_left_alone(self, coco):
        first = run(coco)
        kept, lost = first[0].target, first[3].target
        lost.unlink()
        os.utime(kept, (1, 1))
        again = {result.target: result.skipped for result in run(coco)}
        assert again == {result.target: result.target != lost for result in first}
        assert kept.stat().st_mtime == 1
        assert lost.exists()

    def test_overwriting_makes_all_again(self, coco):
        first = run(coco)
        right = masks(coco)
        first[0].target.write_bytes(b"another")
        assert not any(result.skipped for result in run(coco, overwrite=True))
        assert masks(coco) == right

    def test_a_half_written_file_does_not_count(self, coco):
        torn = coco / COCO_MASKS / "train2017" / ".writing-abc.png"
        torn.parent.mkdir(parents=True)
        torn.write_bytes(b"\x89PNG half of a mask")
        assert [result.skipped for result in run(coco)] == [False] * 5


class TestWorkers:
    def test_two_give_the_same_bytes_as_one(self, coco, tmp_path_factory):
        assert len(run(coco, workers=2)) == 5
        (coco / COCO_MASKS).rename(coco / "of two")
        run(coco)
        assert masks(coco, "of two") == masks(coco)

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_broken_file_is_one_line_and_the_others_go_on(self, coco, workers):
        folder = coco / COCO_SOURCE / "train2017"
        (folder / "000000000000.png").write_bytes(b"no image")
        Image.new("RGB", (4, 4)).save(folder / "000000000001.png")
        Image.new("L", (4, 4), 182).save(folder / "000000000002.png")
        results = {result.source.name: result for result in run(coco, workers=workers)}
        errors = {name: result.error for name, result in results.items() if result.error}
        assert sorted(errors) == [f"{seed:012}.png" for seed in range(3)]
        assert all(error.startswith(str(folder / name)) for name, error in errors.items())
        assert "mode RGB" in errors["000000000001.png"]
        assert "value 182" in errors["000000000002.png"]
        assert len(masks(coco)) == 2
        save_labels(folder / "000000000000.png")
        assert sum(result.error is None for result in run(coco)) == 3

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_name_too_long_for_its_mask_is_one_line(self, coco, workers):
        save_labels(coco / COCO_SOURCE / "val2017" / f"{'x' * 245}.png")
        results = run(coco, workers=workers)
        (error,) = [result.error for result in results if result.error is not None]
        assert "it is longer than 255 bytes" in error
        assert len(masks(coco)) == 5

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_folder_that_cannot_be_written_ends_the_job(self, coco, workers):
        (coco / COCO_MASKS).write_text("in the way")
        with pytest.raises(MaskCLIPError, match="annotations: masks cannot be written"):
            run(coco, workers=workers)

    def test_files_in_flight_are_few(self, coco, monkeypatch):
        submitted = []

        class Pool:
            def __init__(self, *args, **options): ...

            def submit(self, work, *args):
                submitted.append(args)
                return SimpleNamespace(result=lambda: work(*args))

            def shutdown(self, **options): ...

        monkeypatch.setattr(task, "ProcessPoolExecutor", Pool)
        monkeypatch.setattr(task, "_AHEAD", 1)
        taken = 0
        for _ in convert_files(plan_conversion("cocostuff", coco), workers=2):
            taken += 1
            assert len(submitted) - taken <= 2
        assert taken == len(submitted) == 5

    def test_a_process_that_dies_is_an_error(self, coco, monkeypatch):
        monkeypatch.setattr(task, "_start_worker", sys.exit)
        with pytest.raises(MaskCLIPError, match=r"a process died.*fewer `workers` than 2"):
            run(coco, workers=2)


class TestLists:
    def test_those_of_voc_are_made(self, voc):
        plan = plan_conversion("voc-aug", voc)
        assert all(result.error is None for result in convert_files(plan))
        lists = write_split_lists(plan)
        assert {path.name for path in lists.written} == {"trainaug.txt", "aug.txt"}
        assert (voc / VOC_LISTS / "trainaug.txt").read_text() == "both\ns1\ns2\nt1\n"
        names = (voc / VOC_LISTS / "aug.txt").read_text().split()
        assert names == ["s1", "s2"]
        for name in names:  # as mmsegmentation pairs them
            path = voc / "VOCdevkit" / "VOC2012" / "SegmentationClassAug" / f"{name}.png"
            assert np.asarray(Image.open(path)).tolist() == [[5] * 3] * 2
        (note,) = lists.notes
        assert "4 images, the complete data set 10,582" in note

    def test_of_the_whole_data_sets_nothing_is_noted(self, voc, monkeypatch):
        monkeypatch.setattr(task, "_TRAINAUG_SIZE", 4)
        assert write_split_lists(plan_conversion("voc-aug", voc)).notes == ()

    def test_lists_that_are_there_are_kept(self, voc):
        (voc / VOC_LISTS / "aug.txt").write_text("mine\n")
        lists = write_split_lists(plan_conversion("voc-aug", voc))
        assert [path.name for path in lists.written] == ["trainaug.txt"]
        assert (voc / VOC_LISTS / "aug.txt").read_text() == "mine\n"
        again = write_split_lists(plan_conversion("voc-aug", voc))
        assert (again.written, again.notes) == ((), ())

    def test_without_the_lists_of_voc_none_are_made(self, voc):
        (voc / VOC_LISTS / "val.txt").unlink()
        lists = write_split_lists(plan_conversion("voc-aug", voc))
        assert lists.written == ()
        assert "VOC 2012's train.txt and val.txt are needed" in lists.notes[0]
        assert not (voc / VOC_LISTS / "trainaug.txt").exists()

    def test_those_of_context_are_only_missed(self, tmp_path):
        folder = tmp_path / "VOCdevkit" / "VOC2010"
        (folder / "trainval").mkdir(parents=True)
        savemat(folder / "trainval" / "a.mat", {"LabelMap": np.array([[2, 3]], np.uint16)})
        (result,) = run(tmp_path, "context")
        assert np.asarray(Image.open(result.target)).tolist() == [[1, 0]]
        plan = plan_conversion("context", tmp_path)
        assert "train.txt and val.txt missing" in write_split_lists(plan).notes[0]
        lists = folder / "ImageSets" / "SegmentationContext"
        lists.mkdir(parents=True)
        for name in ("train", "val"):
            (lists / f"{name}.txt").write_text("a\n")
        assert write_split_lists(plan).notes == ()


def test_real_labels_of_coco_keep_their_pixel_counts(real_data, tmp_path):
    results = run(tmp_path, source=real_data / COCO_SOURCE)
    assert results
    unused = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
    for result in results:
        assert result.error is None
        raw, mask = (np.asarray(Image.open(path)) for path in (result.source, result.target))
        assert mask.shape == raw.shape
        values, counts = np.unique(raw, return_counts=True)
        assert not set(unused) & set(values.tolist())
        # An id moves down by the number of unused ids before it.
        expected = {
            255 if value == 255 else value - sum(gap < value for gap in unused): count
            for value, count in zip(values.tolist(), counts.tolist(), strict=True)
        }
        ids, counts = np.unique(mask, return_counts=True)
        assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == expected
        assert all(label <= 170 or label == 255 for label in expected)


class TestCommand:
    @pytest.fixture
    def command(self):
        app = typer.Typer()
        app.command()(convert)

        def call(*arguments):
            return CliRunner().invoke(app, [*map(str, arguments), "--workers", "1"])

        return call

    def test_says_what_was_done_and_goes_on(self, coco, command):
        (coco / COCO_SOURCE / "val2017" / "000000000139.png").write_bytes(b"no image")
        outcome = command("cocostuff", "--data", coco)
        assert outcome.exit_code == 1
        assert "4 converted, 0 skipped" in outcome.stdout
        lines = outcome.stderr.splitlines()
        assert lines[0].startswith("error: ")
        assert "000000000139.png" in lines[0]
        assert lines[1:] == ["warning: 1 of 5 files failed"]
        save_labels(coco / COCO_SOURCE / "val2017" / "000000000139.png")
        outcome = command("cocostuff", "--data", coco)
        assert outcome.exit_code == 0
        assert "1 converted, 4 skipped" in outcome.stdout
        outcome = command("cocostuff", "--data", coco, "--overwrite")
        assert "5 converted, 0 skipped" in outcome.stdout

    def test_lists_wait_until_every_file_is_converted(self, voc, command):
        broken = voc / "VOCdevkit" / "VOCaug" / "dataset" / "cls" / "s1.mat"
        sound = broken.read_bytes()
        broken.write_bytes(b"torn")
        outcome = command("voc-aug", "--data", voc)
        assert outcome.exit_code == 1
        assert "the lists are written once all succeed" in outcome.stderr
        assert not (voc / VOC_LISTS / "aug.txt").exists()
        broken.write_bytes(sound)
        outcome = command("voc-aug", "--data", voc)
        assert outcome.exit_code == 0
        assert "trainaug.txt" in outcome.stdout
        assert (voc / VOC_LISTS / "aug.txt").read_text() == "s1\ns2\n"

    def test_a_missing_folder_is_an_error_a_user_can_mend(self, tmp_path, command):
        outcome = command("cityscapes", "--data", tmp_path)
        assert isinstance(outcome.exception, MaskCLIPError)
