"""``clasp_llava_hf``: LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision."""

from __future__ import annotations

from lmms_eval.models.chat.llava_hf import LlavaHf
from lmms_eval.models.simple.llava_hf import LlavaHf as LlavaHfSimple

from clasp_kernels.integrations.lmms_eval.pruned import Pruned


class ClaspLlavaHf(Pruned, LlavaHf):
    """Chat form: the processor's template makes the prompts."""


class ClaspLlavaHfSimple(Pruned, LlavaHfSimple):
    """Simple form (``--force_simple``)."""
