"""The ops: one file each, with its checks, schema, fake and public function.

Importing this package registers every op as ``torch.ops.clasp_kernels.*`` and loads the C++
kernels where they are built.

Arguments are checked before anything runs. Checks of values (indices in range, none repeated,
weights finite) would make a GPU's tensors wait for the device, so there they run only with
``CLASP_KERNELS_STRICT=1``; while compiling they never run, nor do they in compiled code or in a
direct call of ``torch.ops.clasp_kernels.*``. What values that are not allowed then do, on the CPU:

- ``fuse_layers``: a category id that is out of range raises RuntimeError, from the reference
  IndexError, which takes a negative one to count from the last row of ``weights``.
- ``gather_tokens``: an index below -1 gives zeros, one of N or more raises RuntimeError or
  IndexError.
- ``complete_tokens``: an index below -1 is skipped, one of N or more raises RuntimeError or
  IndexError, and a repeated one counts once.
- ``merge_tokens``: an index below -1 gives zeros, and of a repeated one the first slot gets the
  mean, the others zeros. One of N or more raises RuntimeError; from the reference, the image's
  rows then mean nothing.
- ``attention_salience``: weights that are negative or not finite give a mean without a meaning.

On a GPU an IndexError is a device-side assertion.
"""

# In the order in which a prompt meets them, which is the order of the table of ops.
# isort: off
from .fusion import fuse_layers
from .salience import attention_salience
from .pivots import select_pivots
from .completion import complete_tokens
from .selection import Selection, select_tokens
from .gathering import gather_tokens
from .merging import merge_tokens
from .pruning import prune_tokens

# isort: on
from ..backends import cpu, cuda
from ._library import register_gpu_kernels

# After the schemas, which the registrations in C++ refer to. What is left for Triton comes last, as
# a second kernel for the same device would override the first.
cpu.load()
cuda.load()
register_gpu_kernels()

__all__ = [
    "Selection",
    "attention_salience",
    "complete_tokens",
    "fuse_layers",
    "gather_tokens",
    "merge_tokens",
    "prune_tokens",
    "select_pivots",
    "select_tokens",
]
