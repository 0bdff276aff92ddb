"""Visual token pruning inside Hugging Face multimodal models.

``apply_clasp`` patches one model instance, reversibly; ``generate`` is then called as before::

    from clasp_kernels.models import apply_clasp

    handle = apply_clasp(model, budget=64, processor=processor)
    model.generate(**inputs)      # 64 visual tokens per image reach the language model
    handle.last                   # what was kept, what it saved
    handle.remove()               # the model as it was
"""

from clasp_kernels.models.apply import apply_clasp, remove_clasp, supported_model_types
from clasp_kernels.models.handle import ClaspHandle
from clasp_kernels.models.records import PrefillRecord, StageRecord

__all__ = [
    "ClaspHandle",
    "PrefillRecord",
    "StageRecord",
    "apply_clasp",
    "remove_clasp",
    "supported_model_types",
]
