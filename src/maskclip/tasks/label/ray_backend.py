"""Labellers on the machines of a Ray cluster, as a job of Ray Data.

The machines read the photos and write the results under the same paths, as in a folder that all
of them mount; the manifest is written by the driver alone.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from maskclip.core.errors import MaskCLIPError
from maskclip.tasks.label.manifest import Chunk, Outcome
from maskclip.tasks.label.worker import Job, Labeler

_BLOCK = 4  # chunks that a worker is given at once: reading and writing overlap within them


def label_on_ray(
    job: Job, chunks: Iterable[Chunk], *, workers: int | None = None
) -> Generator[list[Outcome], None, None]:
    """Label chunks on a Ray cluster; yield what became of each chunk as it is done.

    It is the cluster that this process is connected to, else that of `RAY_ADDRESS`, else one that
    runs here, else one that is begun for this. A worker that dies is replaced by Ray.

    Args:
        job: what is done.
        chunks: the photos.
        workers: how many; None is one for each GPU, or one a machine where there is none.

    Raises:
        MaskCLIPError: Ray is not installed, or a worker could not go on; its own words.
    """
    try:
        import ray
    except ImportError as error:
        raise MaskCLIPError('--ray needs Ray: pip install "maskclip[ray]"') from error
    waiting = [{"chunk": pickle.dumps(chunk)} for chunk in chunks]
    if not waiting:
        return
    began = not ray.is_initialized()
    if began:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    try:
        settings = ray.data.DataContext.get_current()
        settings.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        count = workers or gpus or len(ray.nodes())
        results = ray.data.from_items(
            waiting, override_num_blocks=max(min(count, len(waiting)), len(waiting) // _BLOCK)
        ).map_batches(
            _Worker,
            fn_constructor_args=(
                _anywhere(job),
                max(1, int(resources.get("CPU", 1)) // count),
            ),
            batch_size=None,
            concurrency=count,
            num_cpus=1,
            num_gpus=min(1.0, gpus / count),
        )
        for row in results.iter_rows():
            answer: list[Outcome] | MaskCLIPError = pickle.loads(row["answer"])
            if isinstance(answer, MaskCLIPError):
                raise answer
            yield answer
    finally:
        if began:
            ray.shutdown()


def _anywhere(job: Job) -> Job:
    """Return a job whose files are found from any working folder."""
    weights = None if job.weights is None else _whole(job.weights)
    return replace(job, out=job.out.resolve(), model=_whole(job.model), weights=weights)


def _whole(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_file() else name


class _Worker:
    """A labeller that Ray keeps on one of its machines.

    Args:
        job: what is done.
        threads: of torch, for Ray allows its workers a single one.
    """

    def __init__(self, job: Job, threads: int) -> None:
        torch.set_num_threads(threads)
        self._labeler: Labeler | MaskCLIPError
        try:
            self._labeler = Labeler(job)
        except MaskCLIPError as error:
            self._labeler = error

    def __call__(self, block: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        """Label the chunks of a block; an error that users can mend is an answer too."""
        try:
            if isinstance(self._labeler, MaskCLIPError):
                raise self._labeler
            for outcomes in self._labeler.label(map(pickle.loads, block["chunk"])):
                yield {"answer": [pickle.dumps(outcomes)]}
        except MaskCLIPError as error:
            yield {"answer": [pickle.dumps(error)]}
