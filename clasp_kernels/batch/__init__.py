"""``clasp batch``: questions about many images, answered shard by shard.

``source`` and its readers cut the input into shards before anything runs; ``shards`` writes their
results as Parquet; ``attempts`` remembers on which row a process died; ``work`` answers one shard;
``output`` keeps the folder for one run; ``local`` has processes of this machine do the shards.

An engine takes a ``Job`` and yields a ``Finished`` for each shard. Other engines than ``local`` are
in ``clasp_kernels.integrations``.

This package knows neither models nor the command line: the ``Answerer`` that answers is made in
each process by a function that the command line gives.
"""

from .shards import CannotWrite, Finished
from .source import Row, Shard, Source, open_source
from .work import Answer, Answerer, Job, Prepared, ShardWorker, StopsJob

__all__ = [
    "Answer",
    "Answerer",
    "CannotWrite",
    "Finished",
    "Job",
    "Prepared",
    "Row",
    "Shard",
    "ShardWorker",
    "Source",
    "StopsJob",
    "open_source",
]
