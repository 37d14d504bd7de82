"""Workers elsewhere: a pool of processes, one for each device, and a Ray cluster.

The machines of a cluster read the photos and write the results under the same paths, as in a folder
that all of them mount; only the driver writes the manifest.
"""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import pickle
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch

from maskclip.core.errors import MaskCLIPError, require_extra
from maskclip.core.regions import SLIC
from maskclip.tasks.label import Chunk, Job, LabelingError, Outcome
from maskclip.tasks.label.worker import Worker

_RAY_BLOCK = 4  # chunks that a worker gets at once: reading and writing overlap within them


def label_in_pool(
    job: Job, chunks: Iterable[Chunk], devices: Sequence[str]
) -> Generator[list[Outcome], None, None]:
    """Label chunks in a process for each device; yield the outcomes of each chunk as it is done.

    Processes on the CPU share its cores.

    Raises:
        MaskCLIPError: an error of a worker, with its message.
        LabelingError: a worker died.
    """
    context = mp.get_context("spawn")  # a fork would inherit the device and its threads
    threads = max(1, torch.get_num_threads() // len(devices))
    tasks: Queue[Chunk | None] = context.Queue()
    for chunk in (*chunks, *[None] * len(devices)):
        tasks.put(chunk)
    workers: dict[Connection, SpawnProcess] = {}
    try:
        for device in devices:
            connection, other = context.Pipe(duplex=False)
            process = context.Process(
                target=_pool_worker, args=(job, device, threads, tasks, other), daemon=True
            )
            process.start()
            other.close()  # so that the end of the process ends the connection
            workers[connection] = process
        while workers:
            for ready in wait(list(workers)):
                assert isinstance(ready, Connection)
                outcomes = _received(ready, workers[ready])
                if outcomes is None:
                    workers.pop(ready).join()
                else:
                    yield outcomes
    finally:
        for process in workers.values():
            process.terminate()
            process.join()
        tasks.cancel_join_thread()


def _received(connection: Connection, process: SpawnProcess) -> list[Outcome] | None:
    try:
        answer: list[Outcome] | MaskCLIPError | None = connection.recv()
    except (EOFError, OSError):  # between two answers, or within one
        process.join()
        raise LabelingError(
            f"a worker died (exit code {process.exitcode}), perhaps because memory is short; what "
            "is done is kept: run the same command to resume, perhaps on fewer devices"
        ) from None
    if isinstance(answer, MaskCLIPError):
        raise answer
    return answer


def _pool_worker(
    job: Job, device: str, threads: int, tasks: Queue[Chunk | None], answers: Connection
) -> None:
    """Label the chunks of a queue until None comes; send the outcomes of each, then None."""
    torch.set_num_threads(threads)
    try:
        for outcomes in Worker(job, device).label(iter(tasks.get, None)):
            answers.send(outcomes)
        answers.send(None)
    except MaskCLIPError as error:
        answers.send(error)
    except (BrokenPipeError, KeyboardInterrupt):
        return  # the driver has ended, or was interrupted by the same key


def label_on_ray(
    job: Job, chunks: Iterable[Chunk], *, workers: int | None = None
) -> Generator[list[Outcome], None, None]:
    """Label chunks on a Ray cluster; yield the outcomes of each chunk as it is done.

    The cluster is the one that this process is connected to, or that of `RAY_ADDRESS`, or one that
    runs on this machine, or a new one that ends with the work. Ray replaces workers that die.

    Args:
        job: what is done.
        chunks: the photos.
        workers: how many; None is one for each GPU, or one for each machine if there is no GPU.

    Raises:
        MaskCLIPError: Ray is not installed, or an error of a worker, with its message.
    """
    require_extra("ray", "ray")
    import ray

    waiting = [{"chunk": pickle.dumps(chunk)} for chunk in chunks]
    if not waiting:
        return
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        count = workers or gpus or len(ray.nodes())
        threads = max(1, int(resources.get("CPU", 1)) // count)
        blocks = max(min(count, len(waiting)), len(waiting) // _RAY_BLOCK)
        results = ray.data.from_items(waiting, override_num_blocks=blocks).map_batches(
            _RayWorker,
            fn_constructor_args=(_with_absolute_paths(job), threads),
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
        if started:
            ray.shutdown()


def _with_absolute_paths(job: Job) -> Job:
    """Return a job whose files are found from any working folder."""
    model = job.model
    weights = None if model.weights is None else _absolute(model.weights)
    proxy = model.proxy
    if proxy is not None and ":" in proxy:
        network, _, file = proxy.partition(":")
        proxy = f"{network}:{_absolute(file)}"
    tokenizer = None if model.tokenizer is None else str(Path(model.tokenizer).resolve())
    model = replace(
        model, name=_absolute(model.name), weights=weights, proxy=proxy, tokenizer=tokenizer
    )
    options = job.options
    if options.regions not in (None, SLIC):
        options = replace(options, regions=str(Path(options.regions).resolve()))
    return replace(job, out=job.out.resolve(), model=model, options=options)


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_file() else name


class _RayWorker:
    """A worker that Ray keeps on one of its machines.

    Args:
        job: what is done.
        threads: of torch; Ray allows its workers only one by default.
    """

    def __init__(self, job: Job, threads: int) -> None:
        torch.set_num_threads(threads)
        self._worker: Worker | MaskCLIPError
        try:
            self._worker = Worker(job)
        except MaskCLIPError as error:
            self._worker = error

    def __call__(self, block: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        """Label the chunks of a block; errors that users can fix are sent as answers."""
        try:
            if isinstance(self._worker, MaskCLIPError):
                raise self._worker
            for outcomes in self._worker.label(map(pickle.loads, block["chunk"])):
                yield {"answer": [pickle.dumps(outcomes)]}
        except MaskCLIPError as error:
            yield {"answer": [pickle.dumps(error)]}
