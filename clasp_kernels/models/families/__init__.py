"""The supported model families, one adapter each."""

from __future__ import annotations

from clasp_kernels.models.adapter import Adapter
from clasp_kernels.models.families.gemma3 import Gemma3Adapter
from clasp_kernels.models.families.idefics3 import Idefics3Adapter, SmolVLMAdapter
from clasp_kernels.models.families.internvl import InternVLAdapter
from clasp_kernels.models.families.llava import LlavaAdapter
from clasp_kernels.models.families.llava_next import LlavaNextAdapter
from clasp_kernels.models.families.llava_onevision import LlavaOnevisionAdapter
from clasp_kernels.models.families.mistral3 import Mistral3Adapter
from clasp_kernels.models.families.paligemma import PaliGemmaAdapter
from clasp_kernels.models.families.qwen2_5_vl import Qwen2_5_VLAdapter
from clasp_kernels.models.families.qwen2_vl import Qwen2VLAdapter
from clasp_kernels.models.families.qwen3_5 import Qwen3_5Adapter, Qwen3_5MoeAdapter
from clasp_kernels.models.families.qwen3_vl import Qwen3VLAdapter, Qwen3VLMoeAdapter
from clasp_kernels.models.families.video_llava import VideoLlavaAdapter

#: Adapter classes by ``config.model_type``.
ADAPTERS: dict[str, type[Adapter]] = {
    "llava": LlavaAdapter,
    "llava_next": LlavaNextAdapter,
    "llava_onevision": LlavaOnevisionAdapter,
    "video_llava": VideoLlavaAdapter,
    "qwen2_5_vl": Qwen2_5_VLAdapter,
    "qwen2_vl": Qwen2VLAdapter,
    "qwen3_vl": Qwen3VLAdapter,
    "qwen3_vl_moe": Qwen3VLMoeAdapter,
    "qwen3_5": Qwen3_5Adapter,
    "qwen3_5_moe": Qwen3_5MoeAdapter,
    "internvl": InternVLAdapter,
    "gemma3": Gemma3Adapter,
    "paligemma": PaliGemmaAdapter,
    "mistral3": Mistral3Adapter,
    "idefics3": Idefics3Adapter,
    "smolvlm": SmolVLMAdapter,
}
