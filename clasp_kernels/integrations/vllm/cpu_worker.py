"""vLLM's worker for CPUs, with the seam for pruned images that vLLM 0.32 opens on GPUs only.

``GPUModelRunner.load_model`` notes that a server prunes, so that it asks the model for positions
after images were encoded. ``CPUModelRunner.load_model`` replaces it, and does not.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker


class PruningCPUWorker(CPUWorker):
    """For ``--worker-cls``."""

    def load_model(self, **options: Any) -> None:
        super().load_model(**options)
        self.model_runner.is_multimodal_pruning_enabled = True
