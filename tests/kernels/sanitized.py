"""What compute-sanitizer watches on a GPU: every op, called with shapes that are awkward.

    benchmarks/gpu.sh sanitize

memcheck   All kernels. Without torch's cache every tensor is an allocation of its own, and whatever
           is read or written past its end is seen.
racecheck  The CUDA extension's kernels: Triton places the barriers of its own. It sees accesses to
           shared memory, also by cp.async. By its manual it does not see what blocks tell each
           other through global memory (the keys of "steps"): the twenty runs of test_gpu_results.py
           have to.
synccheck  The same: barriers that not all threads reach, and masks without the threads that do. By
           its manual not a thread that is named in a mask and never comes.
"""

from __future__ import annotations

import sys

import large
import torch
from calling import run, tensors_mapped
from gpu_kernels import DEVICE, OF_EACH_DESIGN, Kernels, cuda
from inputs import calls, plain_calls

INDICES = {
    "complete_tokens": "selected",
    "cover_tokens": "selected",
    "gather_tokens": "indices",
    "merge_tokens": "indices",
    "fuse_layers": "category_ids",
}
WILD = (-(2**63), -2, 2**31, 2**63 - 1)
# Odd sizes, several blocks each way, and one past a block; rows for 16-byte reads and others. Small
# ones, as racecheck records each access to shared memory.
SIZES = [
    large.Size(2, 65, 63),
    large.Size(1, 1, 1),
    large.Size(2, 65, 64),
    large.Size(2, 13, 8),
    large.Size(2, 100, 63),
    large.Size(2, 301, 136),
]
DTYPES = (torch.float32, torch.bfloat16)
DESIGNS = cuda("matrix", "steps")
WORKLOADS: dict[str, list[Kernels]] = {
    # Those that need no compiler first.
    "memcheck": sorted(OF_EACH_DESIGN, key=lambda kernels: kernels.backend),
    "racecheck": DESIGNS,
    "synccheck": DESIGNS,
}


def call(kernels: Kernels, device: str) -> None:
    op = kernels.op
    with kernels.forced():
        for dtype in DTYPES:
            for size in SIZES:
                if kernels.fit(size):
                    run(op, large.arguments(op, size, dtype, device))
        for given in (calls()[op], calls(torch.bfloat16)[op], plain_calls()[op]):
            run(op, tensors_mapped(given.arguments, lambda tensor: tensor.to(device)))
        if op in INDICES and torch.device(device).type == "cuda":  # on the CPU they are refused
            for wild in WILD:
                given = large.arguments(op, large.Size(2, 65, 64), torch.float32, device)
                given[INDICES[op]].select(0, 1).fill_(wild)
                run(op, given)


def main(tool: str, device: str = DEVICE) -> None:
    called = 0
    for kernels in WORKLOADS[tool]:
        if problem := kernels.problem(device):
            print(f"{kernels}: {problem}", flush=True)
            continue
        call(kernels, device)
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        print(f"{kernels}: done", flush=True)
        called += 1
    if called == 0:
        sys.exit(f"{tool} has had nothing to watch")


if __name__ == "__main__":
    main(*sys.argv[1:])
