"""A run folder over many nights: photos that break, vanish and move, checkpoints that tear."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from maskclip.core.errors import MaskCLIPWarning
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.photos import Photos, open_photos
from maskclip.emoji.scenes import draw_scene
from maskclip.plus import dataset
from maskclip.plus.config import Supervision, TrainingError
from maskclip.tasks import run_folder
from maskclip.tasks import train as task
from maskclip.tasks.callbacks import find_checkpoint
from tests import training
from tests.training import MACHINE, ONE_THREAD, SCENES, TINY, StopAt, StoppedError, same, weights

WORDS = Vocabulary.parse(["dog", "grass", "sky"])
OWN = replace(
    TINY,
    dataset="photos",
    supervision=Supervision(unlabeled=(0, 1, 2), clip_guided=(1, None), published_loss=False),
)
PHOTOS = 8
RUN = replace(MACHINE, overlays=0, keep_every=None)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "photos"
    (folder / "inner").mkdir(parents=True)
    for seed in range(PHOTOS):
        Image.fromarray(draw_scene(seed, size=48).image).save(folder / "inner" / f"{seed}.jpg")
    return folder


@pytest.fixture
def photos(drawn: Path, tmp_path: Path) -> Path:
    """A folder of photos to be damaged."""
    return Path(shutil.copytree(drawn, tmp_path / "photos"))


@pytest.fixture(scope="module")
def whole(drawn: Path) -> dict[str, torch.Tensor]:
    """The weights of a training on the photos that nothing has broken up."""
    task.train(OWN, opened(drawn), drawn.parent / "whole", machine=RUN)
    return weights(drawn.parent / "whole" / "last.ckpt")


@pytest.fixture(scope="module")
def stopped(drawn: Path) -> Path:
    with pytest.raises(StoppedError):
        task.train(OWN, opened(drawn), drawn.parent / "run", machine=RUN, callbacks=[StopAt(5)])
    return drawn.parent / "run"


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """The folder of a training that was stopped in step 5; last.ckpt holds 4, the previous 2."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def opened(folder: Path) -> Photos:
    return open_photos(folder, WORDS)


def cut(path: Path) -> None:
    """Lose the end of a photo: its header still says that it is one."""
    os.truncate(path, path.stat().st_size - 100)


@pytest.fixture
def not_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no folder be small enough to be read before the first step."""
    monkeypatch.setattr(dataset, "_CHEAP_IMAGES", 0)


def test_a_photo_cut_short_is_found_before_the_first_step(photos: Path, tmp_path: Path) -> None:
    cut(photos / "inner" / "3.jpg")
    with pytest.raises(TrainingError, match=r"inner/3\.jpg: damaged or cut short .*take it out"):
        task.train(OWN, opened(photos), tmp_path / "run", machine=RUN)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("not_cheap")
def test_photos_that_cannot_be_read_are_left_out_alike_by_workers_and_stops(
    photos: Path, tmp_path: Path
) -> None:
    cut(photos / "inner" / "3.jpg")
    samples = opened(photos)
    (photos / "inner" / "5.jpg").unlink()
    whole = tmp_path / "whole"
    samples_checked = replace(samples)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Photos, "check", lambda *_: None)  # 5.jpg vanishes after it
        trained = task.train(OWN, samples_checked, whole, machine=replace(RUN, workers=2))
        assert sorted(trained.skipped) == ["inner/3.jpg", "inner/5.jpg"]
        assert "no such file" in trained.skipped["inner/5.jpg"]
        listed = (whole / "skipped.txt").read_text()
        assert "inner/3.jpg: " in listed
        assert listed.count("\n") == 2
        broken = tmp_path / "broken"
        with pytest.raises(StoppedError):
            task.train(OWN, samples, broken, machine=RUN, callbacks=[StopAt(5)])
    with pytest.warns(MaskCLIPWarning, match=r"1 are gone, .* \(inner/5\.jpg\)"):
        found = task.train(OWN, opened(photos), broken, machine=RUN, resume=True)
    assert same(weights(whole / "last.ckpt"), weights(broken / "last.ckpt"))
    assert "inner/3.jpg" in found.skipped


@pytest.mark.usefixtures("not_cheap")
@pytest.mark.parametrize("workers", [0, 2])
def test_many_photos_that_cannot_be_read_end_a_training_in_one_line(
    photos: Path, tmp_path: Path, workers: int
) -> None:
    for path in (photos / "inner").iterdir():
        cut(path)
    with pytest.raises(TrainingError, match=r"^\d of the 8 images of the training cannot be read"):
        task.train(OWN, opened(photos), tmp_path / "run", machine=replace(RUN, workers=workers))


def test_validation_goes_on_without_images_that_cannot_be_read(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = opened(photos)
    monkeypatch.setattr(dataset, "_CHEAP_IMAGES", 0)
    cut(photos / "inner" / "0.jpg")
    trained = task.train(OWN, samples, tmp_path / "run", machine=RUN, validation=samples)
    assert "inner/0.jpg" in trained.skipped
    assert trained.miou is not None


def test_the_same_photos_elsewhere_are_the_same_photos(
    whole: dict[str, torch.Tensor], run: Path, photos: Path
) -> None:
    task.train(OWN, opened(photos), run, machine=RUN, resume=True)  # begun in another folder
    assert same(whole, weights(run / "last.ckpt"))


def test_photos_moved_within_their_folder_are_the_same(
    whole: dict[str, torch.Tensor], run: Path, photos: Path
) -> None:
    (photos / "inner").rename(photos / "other")
    with pytest.warns(MaskCLIPWarning, match="of 8 images, 8 are in another folder$"):
        task.train(OWN, opened(photos), run, machine=RUN, resume=True)
    assert same(whole, weights(run / "last.ckpt"))


def test_a_training_goes_on_without_photos_that_are_gone(run: Path, photos: Path) -> None:
    (photos / "inner" / "1.jpg").unlink()
    (photos / "new.png").write_bytes((photos / "inner" / "2.jpg").read_bytes())
    with (photos / "inner" / "6.jpg").open("ab") as file:
        file.write(b"\0")
    expected = (
        r"of 8 images, 1 are gone, in whose place others are learnt from \(inner/1\.jpg\); "
        r"1 have changed \(inner/6\.jpg\); 1 are new and not learnt from"
    )
    with pytest.warns(MaskCLIPWarning, match=expected):
        trained = task.train(OWN, opened(photos), run, machine=RUN, resume=True)
    assert not trained.already
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 6


def test_another_folder_is_not_taken_for_the_photos(run: Path, photos: Path) -> None:
    for seed in range(1, 6):
        (photos / "inner" / f"{seed}.jpg").unlink()
    with pytest.raises(
        TrainingError, match=r"5 of the 8 images .*are not there any more \(inner/1"
    ):
        task.train(OWN, opened(photos), run, machine=RUN, resume=True)


def test_photos_whose_names_are_no_text_can_be_gone_too(photos: Path, tmp_path: Path) -> None:
    odd = photos / os.fsdecode(b"caf\xe9.jpg")
    try:
        odd.write_bytes((photos / "inner" / "0.jpg").read_bytes())
    except OSError:
        pytest.skip("a file system of text names")
    before = opened(photos)
    config = run_folder.run_config(OWN, before)
    run_folder.begin(tmp_path, config, before)
    assert run_folder.compare(tmp_path, config, before).changes == ""
    odd.unlink()
    after = opened(photos)
    places = run_folder.compare(tmp_path, run_folder.run_config(OWN, after), after)
    assert places.changes.startswith("of 9 images, 1 are gone")
    assert sorted(places.indices, key=str) == [*range(8), None]


def test_what_a_finished_training_cannot_do_names_init(run: Path, photos: Path) -> None:
    task.train(OWN, opened(photos), run, machine=RUN, resume=True)
    for other in ({"steps": 12}, {"lr": 0.02}):
        changed = replace(OWN, optimization=replace(OWN.optimization, **other))
        with pytest.raises(TrainingError, match=rf"`initial={run}/student\.safetensors"):
            task.train(changed, opened(photos), run, machine=RUN, resume=True)
    before = (run / "student.safetensors").stat().st_mtime_ns
    again = task.train(OWN, opened(photos), run, machine=RUN, resume=True)
    assert again.already
    assert (run / "student.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("role", ["initial", "student_weights"])
def test_weights_that_a_training_began_with_are_not_needed_again(
    role: str, photos: Path, tmp_path: Path
) -> None:
    first, moved = (tmp_path / f"{name}.safetensors" for name in ("first", "moved"))
    for file in (first, moved):
        file.write_bytes(b"weights")
    samples, given = opened(photos), replace(OWN, **{role: str(first)})
    run_folder.begin(tmp_path, run_folder.run_config(given, samples), samples)
    elsewhere = run_folder.run_config(replace(OWN, **{role: str(moved)}), samples)
    assert not run_folder.compare(tmp_path, elsewhere, samples).changes
    first.write_bytes(b"other weights")
    with pytest.raises(TrainingError, match=rf"holds another training: files\.{role}"):
        run_folder.compare(tmp_path, run_folder.run_config(given, samples), samples)
    first.unlink()
    assert not run_folder.compare(tmp_path, run_folder.run_config(given, samples), samples).changes


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: os.truncate(path, 100_000), "is damaged or cut short"),
        (lambda path: path.write_bytes(b"<html>404</html>"), "is damaged or cut short"),
        (lambda path: flip(path), "is damaged"),
        (lambda path: torch.save({"state_dict": {}}, path), "is not a checkpoint of this"),
        (lambda path: (path.unlink(), path.mkdir()), "is not a file"),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, message, run: Path) -> None:
    sound = weights(run / "last.ckpt")
    damage(run / "last.ckpt")
    with pytest.warns(MaskCLIPWarning, match=rf"last\.ckpt {message}.*goes on from previous\.ckpt"):
        found = find_checkpoint(run, sound)
    assert torch.load(found, weights_only=True)["global_step"] == 2
    damage(run / "previous.ckpt")
    with pytest.raises(TrainingError, match=rf"last\.ckpt {message}.* and .*previous.*begin anew"):
        find_checkpoint(run, sound)


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer_states": None},
        {"optimizer_states": []},
        {"optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3, 77)}}}]},
        {"lr_schedulers": ["x"]},
        {"loops": None},
        {"loops": {"fit_loop": 3}},
        {"callbacks": {"AtomicCheckpoints": 5}},
        {"state_dict": [1]},
        {"global_step": "many"},
    ],
    ids=str,
)
def test_a_checkpoint_of_other_content_is_none(change, run: Path) -> None:
    sound = weights(run / "last.ckpt")
    for name in ("last.ckpt", "previous.ckpt"):
        content = torch.load(run / name, weights_only=True)
        torch.save({**content, **change}, run / name)
    with pytest.raises(TrainingError, match=r"(no|not a) checkpoint of .*: begin anew"):
        find_checkpoint(run, sound)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"files": {"a.b.c": "x"}}),
        ("config.json", {"files": 5}),
        ("config.json", {"samples": []}),
        ("samples.json", {"names": [1, 2]}),
        ("samples.json", {"names": [[1]]}),
        ("samples.json", {"bytes": [[1]]}),
        ("samples.json", {"bytes": [[[1]]]}),
        ("samples.json", {"names": None}),
        ("samples.json", None),
    ],
    ids=str,
)
def test_an_edited_run_folder_is_one_line(file, change, run: Path, photos: Path) -> None:
    content = json.loads((run / file).read_text())
    (run / file).write_text(json.dumps([1] if change is None else {**content, **change}))
    samples = opened(photos)
    with pytest.raises(TrainingError, match=r"what trains there cannot be read|another training"):
        run_folder.compare(run, run_folder.run_config(OWN, samples), samples)


def flip(path: Path) -> None:
    """Change one byte of the weights."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_a_torn_checkpoint_costs_steps_and_changes_no_weights(
    whole: dict[str, torch.Tensor], run: Path, photos: Path
) -> None:
    os.truncate(run / "last.ckpt", 1000)
    with pytest.warns(MaskCLIPWarning, match="goes on from previous"):
        task.train(OWN, opened(photos), run, machine=RUN, resume=True)
    assert same(whole, weights(run / "last.ckpt"))


def test_a_moved_run_folder_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    run, validation = tmp_path / "run", replace(SCENES, split="val")
    with pytest.raises(StoppedError):
        task.train(TINY, SCENES, run, machine=RUN, validation=validation, callbacks=[StopAt(4)])
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    trained = task.train(TINY, SCENES, moved, machine=RUN, validation=validation, resume=True)
    assert trained.miou is not None
    assert (run / "best.ckpt").exists()  # the copy's training removed nothing here
    assert trained.chosen_step in (3, 6)


def test_a_second_training_in_one_folder_is_refused(run: Path, photos: Path) -> None:
    with (
        run_folder.locked(run),
        pytest.raises(TrainingError, match="is in use: another training writes there"),
    ):
        task.train(OWN, opened(photos), run, machine=RUN, resume=True)


def kill_and_go_on(run: Path, *, after: str, wait: float, workers: int = 0) -> None:
    """Kill a training some time after a file appears."""
    command = [sys.executable, training.__file__, str(run), "TINY", str(workers)]
    process = subprocess.Popen(command, env=ONE_THREAD)
    deadline = time.monotonic() + 90
    while not list(run.glob(after)) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.full
@pytest.mark.timeout(600)
def test_killed_eight_times_it_goes_on_to_the_same_weights(tmp_path: Path, tally) -> None:
    whole = tmp_path / "whole"
    task.train(TINY, SCENES, whole, machine=MACHINE)
    draw = random.Random(0)
    moments = ["config.json", "last.ckpt", "previous.ckpt", ".writing-*"] * 2
    for number, moment in enumerate(moments):
        run = tmp_path / str(number)
        kill_and_go_on(run, after=moment, wait=draw.uniform(0, 0.3), workers=number % 2)
        task.train(TINY, SCENES, run, machine=MACHINE, resume=True)  # at once: no lock is left
        assert same(weights(whole / "last.ckpt"), weights(run / "last.ckpt"))
        tally("trainings killed, resumed to the same weights")


def test_the_record_of_photos_is_plain(run: Path, photos: Path) -> None:
    record = json.loads((run / "samples.json").read_text())
    assert record["names"] == [f"inner/{seed}.jpg" for seed in range(PHOTOS)]
    assert record["bytes"][0] == [(photos / "inner" / "0.jpg").stat().st_size]
