import json
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from maskclip.core.errors import MaskCLIPError
from maskclip.data.corruptions import all_corruptions
from maskclip.emoji.scenes import EmojiScenes
from maskclip.tasks.evaluation.cells import COMPARED, SCORED, earlier_result
from maskclip.tasks.evaluation.results import cell_name, run_sweep, write_sweep
from maskclip.tasks.evaluation.settings import Run

SCENES = EmojiScenes(size=16, seeds=range(1))


class Killed(BaseException):
    """As good as a signal: nothing catches it."""


class Guess:
    """Calls dark pixels dogs; counts its images and dies after a given number of them."""

    def __init__(self, *, dies_after=10**6, model="guess"):
        self.left = dies_after
        self.model = model
        self.seen = 0

    def __call__(self, name, image):
        if self.seen == self.left:
            raise Killed
        self.seen += 1
        return (np.asarray(image.convert("L")) > 128).astype(np.uint8)

    def metadata(self):
        return {"model": self.model, "protocol": None, "sizes": (1, 2)}


def run(predictor, out, **settings):
    return list(run_sweep(predictor, SCENES, Run(**settings), out))


def test_a_killed_sweep_goes_on_and_ends_as_an_unbroken_one(tmp_path):
    whole = Guess()
    cells = run(whole, tmp_path / "whole")
    assert whole.seen == 41
    assert [cell.name for cell in cells] == ["clean", *map(cell_name, all_corruptions())]
    assert not any(cell.kept for cell in cells)

    for lives in (7, 1, 20):
        with pytest.raises(Killed):
            run(Guess(dies_after=lives), tmp_path / "parts")
    last = Guess()
    resumed = run(last, tmp_path / "parts")
    assert last.seen == 41 - 7 - 1 - 20
    assert [cell.kept for cell in resumed] == [True] * 28 + [False] * 13
    for cell in cells:
        held = (tmp_path / "whole" / f"{cell.name}.json").read_bytes()
        assert (tmp_path / "parts" / f"{cell.name}.json").read_bytes() == held
    write_sweep({cell.name: cell.result for cell in cells}, tmp_path / "whole")
    write_sweep({cell.name: cell.result for cell in resumed}, tmp_path / "parts")
    table = (tmp_path / "whole" / "sweep.json").read_bytes()
    assert (tmp_path / "parts" / "sweep.json").read_bytes() == table
    corrupted = json.loads(table)["corrupted"]
    assert len(corrupted) == 8
    assert all(len(row) == 5 for row in corrupted.values())
    assert Image.open(tmp_path / "parts" / "severity.png").width > 300


def test_results_of_another_evaluation_are_not_mixed_in(tmp_path):
    with pytest.raises(Killed):
        run(Guess(dies_after=3), tmp_path)
    with pytest.raises(MaskCLIPError, match=r"clean\.json was made .* \(seed: 0 there, 1 wanted"):
        run(Guess(), tmp_path, seed=1)
    with pytest.raises(MaskCLIPError, match=r"\(model: 'guess' there, 'other' wanted\)"):
        run(Guess(model="other"), tmp_path)
    (tmp_path / "clean.json").write_text("{")
    with pytest.raises(MaskCLIPError, match="expected a result of an evaluation; move it away"):
        run(Guess(), tmp_path)


class TestDamagedResults:
    """Files that an evaluation left, and in which something is missing or wrong."""

    WANTED: ClassVar = {"images": 2, "protocol": None, "options": {"refine": (), "slic": None}}
    RESULT: ClassVar = {
        **{"miou": 50.0, "pixel_accuracy": None, "frequency_weighted_iou": 1, "iou": {}},
        **{"accuracy": {}, "seconds": 0.1, "memory_mib": None, "influences": [0.5, -1]},
        **{"machine": {}, "images": 2, "options": {"refine": []}, "doubts": ["one"]},
    }

    def read(self, folder, kinds, **changes):
        result = {key: value for key, value in {**self.RESULT, **changes}.items() if value != ...}
        (folder / "a.json").write_text(json.dumps(result))
        return earlier_result(folder / "a.json", self.WANTED, kinds)

    @pytest.mark.parametrize(
        ("key", "wrong"),
        [
            *((key, ["text", True, float("nan")]) for key in COMPARED if key != "machine"),
            ("machine", [None, []]),
            ("influences", [[1], [1, None], [1, 2, 3], None]),
            ("iou", [None, 3]),
        ],
    )
    def test_a_missing_or_wrong_value_is_one_line(self, tmp_path, key, wrong):
        for value in (..., *wrong):
            with pytest.raises(MaskCLIPError, match=rf"a\.json is damaged: .* as {key}, got ") as e:
                self.read(tmp_path, COMPARED, **{key: value})
            assert "delete it, and it is measured again" in str(e.value)
            assert "\n" not in str(e.value)

    @pytest.mark.parametrize(
        "changes",
        [{"doubts": 3}, {"doubts": [1]}, {"differs_from_protocol": None}]
        + [{"published": value} for value in (3, {}, {"miou": "1"})],
    )
    def test_what_need_not_be_there_must_be_right_if_it_is(self, tmp_path, changes):
        with pytest.raises(MaskCLIPError, match=f"is damaged: .* as {next(iter(changes))}, got"):
            self.read(tmp_path, SCORED, **changes)

    def test_settings_that_are_null_may_be_missing(self, tmp_path):
        found = self.read(tmp_path, SCORED, seconds=..., doubts=..., published={"miou": 1.5})
        assert found["options"] == {"refine": [], "slic": None}
        assert found["protocol"] is None
        assert self.read(tmp_path, COMPARED)["influences"] == [0.5, -1]
        with pytest.raises(MaskCLIPError, match=r"other settings \(images: None there, 2 wanted"):
            self.read(tmp_path, SCORED, images=...)

    def test_a_sweep_is_refused_before_anything_is_measured(self, tmp_path):
        with pytest.raises(Killed):
            run(Guess(dies_after=3), tmp_path)
        cell = tmp_path / f"{cell_name(all_corruptions()[0])}.json"
        cell.write_text(cell.read_text().replace('"miou"', '"other"'))
        again = Guess()
        with pytest.raises(MaskCLIPError, match=r"_1\.json is damaged: .* as miou, got nothing"):
            run(again, tmp_path)
        assert again.seen == 0
