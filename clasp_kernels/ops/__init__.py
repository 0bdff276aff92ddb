"""The ops: one file each, with its checks, schema, fake and public function.

Importing this package registers every op as ``torch.ops.clasp_kernels.*`` and loads the C++
kernels where they are built.

Arguments are checked before anything runs. Checks of values (indices in range, none repeated,
weights finite) would make a GPU's tensors wait for the device, so there they run only with
``CLASP_KERNELS_STRICT=1``; while compiling they never run.
"""

from .. import _native
from .attention_salience import attention_salience
from .complete_tokens import complete_tokens
from .fuse_layers import fuse_layers
from .gather_tokens import gather_tokens
from .merge_tokens import merge_tokens
from .prune_tokens import prune_tokens
from .select_pivots import select_pivots
from .select_tokens import Selection, select_tokens

# After the schemas, which the C++ registrations refer to.
_native.load()

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
