"""The engine ``ray`` of ``clasp batch``: the shards of a job as actors of a Ray cluster.

One shard is one row of a Ray dataset, and the actor that answers it also writes it. So nothing of a
result ever waits in an actor, in the object store or in the driver: whatever is killed, a shard is
in the folder, or it is begun again. Ray may do one twice, as it retries tasks whose node it has
lost; the second time, it is there already, or the same rows take its place.

Scheduling, retries, back pressure and the number of actors are Ray's. The cluster is that of
``RAY_ADDRESS``, else one that runs on this machine, else one that is started for the job. Its nodes
must see the input, the model and the results under the same paths.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from clasp_kernels.batch import CannotWrite, Finished, Job, ShardWorker, StopsJob
from clasp_kernels.batch.work import DeviceLost

if TYPE_CHECKING:
    import numpy as np

# Shards that an actor is given at a time: one to do, and one that waits for it.
_IN_FLIGHT = 2
# A block of a dataset costs Ray some bookkeeping. Up to so many, each has one shard.
_MOST_BLOCKS = 4096


def device_type(device: str) -> str:
    """Return ``cpu`` or ``cuda``: where the actors would have the model.

    Raises:
        StopsJob: there is no Ray cluster, and none can be started; or it has no GPU, but
            ``device`` is one.
    """
    kind = device.partition(":")[0]
    if kind == "cpu":
        return kind
    has_gpu = bool(_cluster().get("GPU"))
    if kind == "cuda" and not has_gpu:  # Ray would wait for one without an end
        raise StopsJob(f"--device {device} cannot be used: the Ray cluster has no GPU")
    return "cuda" if has_gpu else "cpu"


def run(job: Job, workers: tuple[int, int] | None) -> Iterator[Finished]:
    """Have a Ray cluster do a job. Yields what became of each shard, in any order.

    Args:
        workers: least and largest number of actors, between which Ray chooses; by default from 1 to
            the number of GPUs, or to half of the processors. With GPUs, each actor has one.

    Raises:
        StopsJob: the job cannot go on. Shards that are written stay.
    """
    there = _cluster()
    import ray

    on_gpu = device_type(job.device) == "cuda"
    most = int(there.get("GPU", 0)) if on_gpu else int(there.get("CPU", 0)) // 2
    least, most = (1, max(1, most)) if workers is None else workers
    shards = {shard.index: shard for shard in job.shards}
    try:
        items = ray.data.from_items(
            [{"shard": index} for index in shards],
            override_num_blocks=min(len(shards), _MOST_BLOCKS),
        )
        answered = items.map_batches(
            ShardActor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=least, max_size=most, max_tasks_in_flight_per_actor=_IN_FLIGHT
            ),
            num_cpus=1,
            num_gpus=1 if on_gpu else 0,
            fn_constructor_args=(ray.put((job, shards)), "cuda" if on_gpu else "cpu"),
        )
        for row in answered.iter_rows():
            if row["failure"]:
                raise StopsJob(row["failure"])
            yield Finished(*(int(row[name]) for name in _COLUMNS))
    except (ray.exceptions.RayError, ConnectionError) as error:
        lines = str(error).strip().splitlines()
        raise StopsJob(
            f"the Ray cluster cannot go on: {lines[-1] if lines else type(error).__name__}"
        ) from None
    finally:
        ray.shutdown()  # ends the actors, and the cluster if it was started here


_COLUMNS = ("rows", "errors", "tokens_before", "tokens_after")


class ShardActor:
    """A process of the cluster that has the model, and does the shards that Ray sends it.

    What stops the job is returned and not raised: Ray would make a long traceback of it.
    """

    def __init__(self, job: Any, device: str) -> None:
        """``job`` is a reference to the job and to its shards by index."""
        import ray

        job, self._shards = ray.get(job) if isinstance(job, ray.ObjectRef) else job
        self._failure = ""
        try:
            self._worker = ShardWorker(job, device)
        except StopsJob as error:
            self._failure = str(error)

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, list[Any]]:
        [index] = batch["shard"]
        finished = Finished(0, 0, 0, 0)
        if not self._failure:
            try:
                finished = self._worker.run(self._shards[int(index)])
            except (StopsJob, CannotWrite) as error:
                self._failure = str(error)
            except DeviceLost:
                os._exit(1)  # Ray starts another actor, and gives it the shard
        row = {name: [getattr(finished, name)] for name in _COLUMNS}
        return {**row, "failure": [self._failure]}


def _cluster() -> dict[str, float]:
    """Connect to Ray, if that is not done yet, and return what the cluster has."""
    import ray

    if not ray.is_initialized():
        import ray.data

        # The command shows its own progress.
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        # Ray raises a plain Exception if a process of a new cluster does not start in time.
        except Exception as error:
            raise StopsJob(f"there is no Ray cluster: {error}") from None
    resources: dict[str, float] = ray.cluster_resources()
    return resources
