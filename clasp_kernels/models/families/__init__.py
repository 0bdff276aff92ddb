"""The model families that can be pruned, an adapter each."""

from __future__ import annotations

from clasp_kernels.models.adapter import Adapter
from clasp_kernels.models.families.internvl import InternVLAdapter
from clasp_kernels.models.families.llava import LlavaAdapter
from clasp_kernels.models.families.qwen2_5_vl import Qwen2_5_VLAdapter
from clasp_kernels.models.families.qwen2_vl import Qwen2VLAdapter
from clasp_kernels.models.families.qwen3_vl import Qwen3VLAdapter

#: By ``config.model_type``.
ADAPTERS: dict[str, type[Adapter]] = {
    "llava": LlavaAdapter,
    "qwen2_5_vl": Qwen2_5_VLAdapter,
    "qwen2_vl": Qwen2VLAdapter,
    "qwen3_vl": Qwen3VLAdapter,
    "internvl": InternVLAdapter,
}
