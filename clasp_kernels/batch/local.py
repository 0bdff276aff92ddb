"""The engine for one machine: a process for each GPU, or a few for the CPU.

A process that dies is replaced, and the shard that it had in hand is begun again; the other
processes do not notice. The processes end when the one that started them does, however it ends.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from clasp_kernels.batch.shards import CannotWrite, Finished
from clasp_kernels.batch.source import Shard
from clasp_kernels.batch.work import DeviceLost, Job, ShardWorker, StopsJob

# A process that dies while it loads the model is replaced so often in a row.
_LOADS = 3
_MOST_CPU_PROCESSES = 4
_SECONDS_TO_END = 10


@dataclass(frozen=True)
class _Failure:
    """Why no process can go on."""

    reason: str


_READY = "ready"


def device_type(device: str) -> str:
    """Return ``cpu`` or ``cuda``: where the processes would have the model."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device).type


def default_workers(device: str) -> int:
    """Return the number of GPUs, or half of the processors that may be used, from 1 to 4."""
    if device == "auto" and torch.cuda.is_available():
        return torch.cuda.device_count()
    if device == "cpu" or device == "auto":
        return max(1, min(_MOST_CPU_PROCESSES, len(os.sched_getaffinity(0)) // 2))
    return 1


def run(job: Job, workers: tuple[int, int] | None) -> Iterator[Finished]:
    """Have processes of this machine do a job. Yields what became of each shard, in any order.

    Args:
        workers: least and largest number of processes, of which the largest is taken; by default
            that of ``default_workers``. With ``device`` auto, they take the GPUs in turn.

    Raises:
        StopsJob, CannotWrite: the job cannot go on. Shards that are written stay.
    """
    wanted = default_workers(job.device) if workers is None else workers[1]
    count = min(wanted, len(job.shards))
    waiting = deque(job.shards)
    pool = [_Process(job, number, count) for number in range(count)]
    failed_loads = 0
    try:
        while waiting or any(process.shard for process in pool):
            told = wait([process.connection for process in pool])
            for number, process in enumerate(pool):
                if process.connection not in told:
                    continue
                try:
                    message = process.connection.recv()
                except (EOFError, OSError):  # it died
                    if process.is_ready:
                        failed_loads = 0
                    else:
                        failed_loads += 1
                    if failed_loads >= _LOADS:
                        raise StopsJob(
                            f"{failed_loads} processes in a row ended while they loaded the model "
                            f"({process.ending()}): fewer --workers take less memory"
                        ) from None
                    if process.shard:
                        waiting.appendleft(process.shard)
                    process.end()
                    pool[number] = _Process(job, number, count)
                    continue
                if isinstance(message, _Failure):
                    raise StopsJob(message.reason)
                if message == _READY:
                    process.is_ready, failed_loads = True, 0
                else:
                    process.shard = None
                    yield message
                if waiting:
                    process.send(waiting.popleft())
    finally:
        for process in pool:
            process.end()


class _Process:
    """A process that does shards, seen from the one that started it."""

    def __init__(self, job: Job, number: int, count: int) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.shard: Shard | None = None
        self.is_ready = False
        self._process: SpawnProcess = context.Process(
            target=_work, args=(theirs, job.without_shards(), number, count), daemon=True
        )
        # Ctrl-C reaches every process of a terminal. This one decides: the others ignore it, from
        # their first instruction on.
        before = _ignore_interrupts()
        try:
            self._process.start()
        finally:
            if before is not None:
                signal.signal(signal.SIGINT, before)
        theirs.close()

    def send(self, shard: Shard) -> None:
        self.shard = shard
        with suppress(OSError):  # it died: the next recv() says so
            self.connection.send(shard)

    def ending(self) -> str:
        """Return how the process ended, in words."""
        self._process.join(_SECONDS_TO_END)
        code = self._process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"

    def end(self) -> None:
        """End the process at once. A shard that it has in hand is dropped."""
        self._process.kill()
        self._process.join(_SECONDS_TO_END)
        self.connection.close()


def _ignore_interrupts() -> Any:
    if threading.current_thread() is not threading.main_thread():
        return None  # there, signals cannot be set, and none arrives
    return signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(connection: Connection, job: Job, number: int, count: int) -> None:
    """Do the shards that arrive, until there are no more."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        device = job.device
        if device == "auto" and torch.cuda.is_available():
            device = f"cuda:{number % torch.cuda.device_count()}"
        if device in ("auto", "cpu") and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // count))
        worker = ShardWorker(job, device)
        connection.send(_READY)
        while True:
            connection.send(worker.run(connection.recv()))
    except EOFError:
        return
    except DeviceLost:
        os._exit(1)
    except (CannotWrite, StopsJob) as error:
        connection.send(_Failure(str(error)))
    except Exception:  # a bug, or a model that cannot be loaded
        connection.send(_Failure(f"a process failed:\n{traceback.format_exc()}"))


def _end_with_the_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
