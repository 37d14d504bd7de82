"""Labellings by a pool of processes and on a Ray cluster: the files are those of one process."""

import importlib.util
import logging
import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from functools import partial

import pytest
from PIL import Image

from maskclip.core.config import ModelConfig, Options
from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.sources import find_sources
from maskclip.emoji.scenes import draw_scene
from maskclip.tasks.label import Job, LabelingError, manifest
from maskclip.tasks.label.backends import _with_absolute_paths, label_in_pool, label_on_ray
from maskclip.tasks.label.manifest import Counts
from maskclip.tasks.label.pipeline import MANIFEST, label_photos

SCENES = 24
WORDS = Vocabulary.parse(["dog", "grass", "sky"])


def job(out):
    return Job(
        model=ModelConfig(name="emoji", templates="plain"),
        vocabulary=WORDS,
        out=out,
        options=Options(short_side=160),
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


class TestPool:
    def test_two_processes_leave_the_files_of_one(self, sources, whole, tmp_path):
        out, backend = tmp_path / "out", partial(label_in_pool, devices=["cpu", "cpu"])
        seen = []

        def note(outcomes, counts):
            seen.append(counts.done)

        counts = label_photos(job(out), sources, device="cpu", backend=backend, on_progress=note)
        assert counts == Counts(done=SCENES, failed=0, left=0)
        assert seen == list(range(2, SCENES + 1, 2))
        assert tree(out) == whole
        assert multiprocessing.active_children() == []

    def test_a_workers_error_keeps_its_message(self, sources, tmp_path):
        backend = partial(label_in_pool, devices=["tpu9"])
        with pytest.raises(MaskCLIPError, match="'tpu9'"):
            label_photos(job(tmp_path), sources, device="cpu", backend=backend)

    @pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
    def test_a_worker_that_dies_is_reported_and_nothing_is_lost(self, sources, whole, tmp_path):
        out, backend = tmp_path / "out", partial(label_in_pool, devices=["cpu"])

        def kill(*_):
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGKILL)
                process.join()

        # The answers that the worker had sent are read before its end is.
        with pytest.raises(LabelingError, match=r"a worker died \(exit code -9\).* to resume"):
            label_photos(job(out), sources, device="cpu", backend=backend, on_progress=kill)
        assert not (out / "report.json").exists()
        assert label_photos(job(out), sources, device="cpu").done == SCENES
        assert tree(out) == whole


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers of one processor each; they have the environment of this process."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        environment.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
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
        yield ray
        ray.shutdown()


class TestRay:
    def test_two_workers_leave_the_files_of_one_process(
        self, cluster, sources, whole, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        backend = partial(label_on_ray, workers=2)
        counts = label_photos(job(tmp_path / "out"), sources, device="cpu", backend=backend)
        assert counts == Counts(done=SCENES, failed=0, left=0)
        assert tree(tmp_path / "out") == whole
        assert cluster.is_initialized()  # a cluster that was there stays

    def test_a_workers_error_keeps_its_message(self, cluster, sources, tmp_path):
        def backend(job, chunks):
            unknown = replace(job, model=ModelConfig(name="ViT-B-17"))
            return label_on_ray(unknown, chunks, workers=1)

        with pytest.raises(MaskCLIPError, match=r"ViT-B-17.*ViT-B-16"):
            label_photos(job(tmp_path / "out"), sources, device="cpu", backend=backend)

    @pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
    def test_where_ray_is_not_installed_it_names_the_command(self, sources, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(MaskCLIPError, match=r'ray, not installed yet: pip install ".*\[ray\]"'):
            label_photos(job(tmp_path / "out"), sources, device="cpu", backend=label_on_ray)


def test_machines_of_a_cluster_get_paths_that_hold_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maps").mkdir()
    (tmp_path / "proxy.pth").write_bytes(b"")
    model = ModelConfig(name="emoji-vit", proxy="vit_tiny_patch16_224:proxy.pth")
    here = Job(model=model, vocabulary=WORDS, out=tmp_path, options=Options(regions="maps"))
    found = _with_absolute_paths(here)
    assert found.options.regions == str((tmp_path / "maps").resolve())
    assert found.model.proxy == f"vit_tiny_patch16_224:{(tmp_path / 'proxy.pth').resolve()}"
    plain = replace(here, model=replace(model, proxy="a:random"), options=Options(regions="slic"))
    assert _with_absolute_paths(plain).options.regions == "slic"
    assert _with_absolute_paths(plain).model.proxy == "a:random"
