"""Every op with Triton kernels once on a GPU, for compute-sanitizer to watch.

    benchmarks/gpu.sh memcheck

Without torch's cache every tensor is an allocation of its own, and whatever is read or written past
its end is seen.
"""

from __future__ import annotations

import large
import torch
from calling import run, tensors_mapped
from inputs import calls, plain_calls

from clasp_kernels import backends, use_backend

INDICES = {
    "complete_tokens": "selected",
    "gather_tokens": "indices",
    "merge_tokens": "indices",
    "fuse_layers": "category_ids",
}
# Odd sizes, several blocks each way, and one past a block.
SIZES = (large.Size(2, 65, 63), large.Size(2, 577, 129), large.Size(1, 1, 1))


def run_op(op: str, device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        run(op, tensors_mapped(calls(dtype)[op].arguments, lambda tensor: tensor.to(device)))
        for size in SIZES:
            run(op, large.arguments(op, size, dtype, device))
    run(op, tensors_mapped(plain_calls()[op].arguments, lambda tensor: tensor.to(device)))
    if op in INDICES and device == "cuda":  # on the CPU they are refused
        for wild in (-(2**63), -2, 2**31, 2**63 - 1):
            given = large.arguments(op, large.Size(2, 65, 63), torch.float32, device)
            given[INDICES[op]].select(0, 1).fill_(wild)
            run(op, given)


def main(device: str = "cuda") -> None:
    with use_backend("triton"):
        for op in large.OPS:
            choice = backends.choose(op, device, "triton")
            if choice.backend is None:
                print(f"{op}: {choice.reason}", flush=True)
                continue
            run_op(op, device)
            if device == "cuda":
                torch.cuda.synchronize()
            print(f"{op}: done", flush=True)


if __name__ == "__main__":
    main()
