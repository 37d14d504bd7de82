"""Labellers in processes of their own, one a device."""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Generator, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue

import torch

from maskclip.core.errors import MaskCLIPError
from maskclip.tasks.label.manifest import Chunk, LabelError, Outcome
from maskclip.tasks.label.worker import Job, Labeler


def label_in_processes(
    job: Job, chunks: Iterable[Chunk], devices: Sequence[str]
) -> Generator[list[Outcome], None, None]:
    """Label chunks with a process for each device; yield what became of each chunk as it is done.

    Processes on the CPU share its cores.

    Raises:
        MaskCLIPError: a worker could not go on; its own words.
        LabelError: a worker died.
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
                target=_work, args=(job, device, threads, tasks, other), daemon=True
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
        raise LabelError(
            f"a worker died (exit code {process.exitcode}), perhaps for want of memory; nothing is "
            "lost: run the same command to go on, perhaps on fewer devices"
        ) from None
    if isinstance(answer, MaskCLIPError):
        raise answer
    return answer


def _work(
    job: Job, device: str, threads: int, tasks: Queue[Chunk | None], answers: Connection
) -> None:
    """Label the chunks of a queue until None comes; answer what became of each, and None."""
    torch.set_num_threads(threads)
    try:
        for outcomes in Labeler(job, device).label(iter(tasks.get, None)):
            answers.send(outcomes)
        answers.send(None)
    except MaskCLIPError as error:
        answers.send(error)
    except (BrokenPipeError, KeyboardInterrupt):
        return  # the driver has gone, or is told by the same key
