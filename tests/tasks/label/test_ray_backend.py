"""Labellings on a Ray cluster, of two workers on this machine."""

import logging
import sys
from dataclasses import replace
from functools import partial

import pytest
from PIL import Image

from maskclip.core.config import Options
from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.sources import find_sources
from maskclip.emoji.scenes import draw_scene
from maskclip.tasks.label import manifest
from maskclip.tasks.label.manifest import Counts
from maskclip.tasks.label.pipeline import MANIFEST, label_photos
from maskclip.tasks.label.ray_backend import label_on_ray
from maskclip.tasks.label.worker import Job

ray = pytest.importorskip("ray")

SCENES = 12


def job(out):
    return Job(
        model="emoji",
        vocabulary=Vocabulary.parse(["dog", "grass", "sky"]),
        out=out,
        templates="plain",
        options=Options(short_side=160),
        formats=("png", "coco"),
    )


def tree(out):
    files = (path for path in out.rglob("*") if path.is_file())
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in found.items() if not name.startswith(MANIFEST)}


@pytest.fixture
def sources(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "CHUNK", 2)
    for seed in range(SCENES):
        path = tmp_path / "photos" / f"{seed}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draw_scene(seed, size=64).image).save(path)
    return find_sources([tmp_path / "photos"])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers of one processor each; they have the environment of this process."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        environment.setenv("RAY_BACKEND_LOG_LEVEL", "error")
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        yield
        ray.shutdown()


def test_two_workers_leave_the_files_of_one_process(cluster, sources, tmp_path, monkeypatch):
    label_photos(job(tmp_path / "whole"), sources, device="cpu")
    monkeypatch.chdir(tmp_path)
    crew = partial(label_on_ray, workers=2)
    counts = label_photos(job(tmp_path / "out"), sources, device="cpu", crew=crew)
    assert counts == Counts(done=SCENES, failed=0, left=0)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert ray.is_initialized()  # a cluster that was there stays


def test_a_workers_error_arrives_in_its_own_words(cluster, sources, tmp_path):
    def crew(asked, chunks):
        return label_on_ray(replace(asked, model="ViT-B-17"), chunks, workers=1)

    with pytest.raises(MaskCLIPError, match=r"ViT-B-17.*ViT-B-16"):
        label_photos(job(tmp_path / "out"), sources, device="cpu", crew=crew)


def test_where_ray_is_not_installed_it_says_how_to_get_it(sources, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MaskCLIPError, match=r'pip install "maskclip\[ray\]"'):
        label_photos(job(tmp_path / "out"), sources, device="cpu", crew=label_on_ray)
