"""``clasp_qwen3_vl``: Qwen3-VL, also with experts."""

from __future__ import annotations

from lmms_eval.models.chat.qwen3_vl import Qwen3_VL
from lmms_eval.models.simple.qwen3_vl import Qwen3_VL as Qwen3_VLSimple

from clasp_kernels.integrations.lmms_eval.pruned import Pruned


class ClaspQwen3VL(Pruned, Qwen3_VL):
    """Chat form: messages as the tasks give them."""


class ClaspQwen3VLSimple(Pruned, Qwen3_VLSimple):
    """Simple form (``--force_simple``)."""
