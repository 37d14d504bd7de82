import json

import numpy as np
import pytest
from PIL import Image

from maskclip.core.errors import MaskCLIPError
from maskclip.data.corruptions import all_corruptions
from maskclip.emoji.scenes import EmojiScenes
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
    with pytest.raises(MaskCLIPError, match=r"clean\.json was made with seed 0, not 1"):
        run(Guess(), tmp_path, seed=1)
    with pytest.raises(MaskCLIPError, match="was made with model 'guess', not 'other'"):
        run(Guess(model="other"), tmp_path)
    (tmp_path / "clean.json").write_text("{")
    with pytest.raises(MaskCLIPError, match="expected a result of an evaluation; move it away"):
        run(Guess(), tmp_path)
