"""``clasp_qwen2_5_vl``: Qwen2.5-VL."""

from __future__ import annotations

from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL
from lmms_eval.models.simple.qwen2_5_vl import Qwen2_5_VL as Qwen2_5_VLSimple

from clasp_kernels.integrations.lmms_eval.pruned import Pruned


class ClaspQwen2_5VL(Pruned, Qwen2_5_VL):
    """Chat form: messages as the tasks give them."""


class ClaspQwen2_5VLSimple(Pruned, Qwen2_5_VLSimple):
    """Simple form (``--force_simple``)."""
