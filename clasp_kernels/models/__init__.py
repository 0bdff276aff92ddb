"""Visual token pruning inside Hugging Face multimodal models.

``apply_clasp`` patches one model instance, reversibly; ``generate`` is then called as before::

    from clasp_kernels import apply_clasp

    handle = apply_clasp(model, budget=0.25)
    model.generate(**inputs)      # a quarter of the visual tokens reaches the language model
    handle.last                   # what was kept, what it saved
    handle.remove()               # the model as it was

``verify()`` checks that pruning is correct with the installed transformers.
"""

from clasp_kernels.models.apply import apply_clasp, remove_clasp, supported_model_types
from clasp_kernels.models.encoded import EncodedImage
from clasp_kernels.models.handle import ClaspHandle
from clasp_kernels.models.records import PrefillRecord, StageRecord
from clasp_kernels.models.verification import Check, Verification, verify

__all__ = [
    "Check",
    "ClaspHandle",
    "EncodedImage",
    "PrefillRecord",
    "StageRecord",
    "Verification",
    "apply_clasp",
    "remove_clasp",
    "supported_model_types",
    "verify",
]
