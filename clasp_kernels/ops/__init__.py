"""The ops, one file each with its checks, schema, fake implementation and public function.

Importing this package registers every op as ``torch.ops.clasp_kernels.*`` and loads the C++ kernels
if they are built.

Arguments are checked before anything runs. Checks of values (indices in range, no repeats, finite
weights) would synchronize with the GPU. For GPU tensors they run only with
``CLASP_KERNELS_STRICT=1``. They never run during compilation, in compiled code or in a direct call
of ``torch.ops.clasp_kernels.*``. Unchecked invalid values have these effects on the CPU:

- ``fuse_layers``: a category id out of range raises RuntimeError. The reference raises IndexError,
  and takes a negative id to count from the last row of ``weights``.
- ``gather_tokens``: an index below -1 gives zeros. An index of N or more raises RuntimeError or
  IndexError.
- ``complete_tokens`` and ``cover_tokens``: an index below -1 is skipped. An index of N or more
  raises RuntimeError or IndexError. A repeated index counts once.
- ``merge_tokens``: an index below -1 gives zeros. The first slot of a repeated index gets the mean,
  the others zeros. An index of N or more raises RuntimeError; in the reference, the output rows of
  that image are then meaningless.
- ``attention_salience``: with negative or non-finite weights the result is meaningless.

On a GPU, an IndexError becomes a device-side assertion.
"""

# In the order of the pipeline, which is the order of the table of ops.
# isort: off
from .fusion import fuse_layers
from .salience import attention_salience
from .pivots import select_pivots
from .completion import complete_tokens
from .covering import cover_tokens
from .selection import Selection, select_tokens
from .gathering import gather_tokens
from .merging import merge_tokens
from .pruning import prune_tokens

# isort: on
from ..backends import cpu, cuda
from ._library import register_gpu_kernels

# Load the C++ libraries after the schemas are defined, because they register kernels for them.
# Register Triton last and only for ops without a CUDA kernel, because a second kernel for a device
# overrides the first.
cpu.load()
cuda.load()
register_gpu_kernels()

__all__ = [
    "Selection",
    "attention_salience",
    "complete_tokens",
    "cover_tokens",
    "fuse_layers",
    "gather_tokens",
    "merge_tokens",
    "prune_tokens",
    "select_pivots",
    "select_tokens",
]
