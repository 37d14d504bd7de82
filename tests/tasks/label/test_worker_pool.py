"""Labellings by processes of their own: the files are those of one process."""

import multiprocessing
import os
import signal
import sys
from functools import partial

import pytest
from PIL import Image

from maskclip.core.config import Options
from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.sources import find_sources
from maskclip.emoji.scenes import draw_scene
from maskclip.tasks.label import manifest
from maskclip.tasks.label.manifest import Counts, LabelError
from maskclip.tasks.label.pipeline import MANIFEST, label_photos
from maskclip.tasks.label.worker import Job
from maskclip.tasks.label.worker_pool import label_in_processes

SCENES = 24
WORDS = Vocabulary.parse(["dog", "grass", "sky"])


def job(out):
    options = Options(short_side=160)
    return Job(
        model="emoji",
        vocabulary=WORDS,
        out=out,
        templates="plain",
        options=options,
        formats=("png", "coco"),
    )


def tree(out):
    files = (path for path in out.rglob("*") if path.is_file())
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in found.items() if not name.startswith(MANIFEST)}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(manifest, "CHUNK", 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(SCENES):
        Image.fromarray(draw_scene(seed, size=64).image).save(folder / f"{seed}.png")
    return find_sources([folder])


@pytest.fixture
def whole(sources, tmp_path):
    """The files of one process."""
    out = tmp_path / "whole"
    label_photos(job(out), sources, device="cpu")
    return tree(out)


def test_two_processes_leave_the_files_of_one(sources, whole, tmp_path):
    out, crew = tmp_path / "out", partial(label_in_processes, devices=["cpu", "cpu"])
    seen = []

    def watch(outcomes, counts):
        seen.append(counts.done)

    counts = label_photos(job(out), sources, device="cpu", crew=crew, watch=watch)
    assert counts == Counts(done=SCENES, failed=0, left=0)
    assert seen == list(range(2, SCENES + 1, 2))
    assert tree(out) == whole
    assert multiprocessing.active_children() == []


def test_a_workers_error_arrives_in_its_own_words(sources, tmp_path):
    crew = partial(label_in_processes, devices=["tpu9"])
    with pytest.raises(MaskCLIPError, match="device 'tpu9' is not to be had here"):
        label_photos(job(tmp_path), sources, device="cpu", crew=crew)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_worker_that_dies_is_told_and_nothing_is_lost(sources, whole, tmp_path):
    out, crew = tmp_path / "out", partial(label_in_processes, devices=["cpu"])

    def kill(*_):
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)
            process.join()

    # The answers that the worker had sent are read before its end is.
    with pytest.raises(LabelError, match=r"a worker died \(exit code -9\).* same command to go on"):
        label_photos(job(out), sources, device="cpu", crew=crew, watch=kill)
    assert not (out / "report.json").exists()
    assert label_photos(job(out), sources, device="cpu").done == SCENES
    assert tree(out) == whole
