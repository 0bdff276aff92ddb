"""Reads what the selection needs from the vision tower of vLLM's Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from clasp_kernels.models.capture import CapturedAttention
from clasp_kernels.models.families._packed import TowerOutput
from clasp_kernels.models.families.qwen2_5_vl import Qwen2_5_VLAdapter
from clasp_kernels.policy import Profile


class PackedTowerAdapter(Qwen2_5_VLAdapter):
    """Qwen2.5-VL in vLLM: the family's adapter, but the model that ``encode`` is given is vLLM's.

    vLLM's vision tower returns neither hidden states nor attention. Both are taken from the inputs
    of its submodules while it runs, so nothing is computed twice.
    """

    def __init__(self, config: Any, profile: Profile, fuse_into: str) -> None:
        """
        Raises:
            ValueError: config and profile do not fit.
        """
        self.configure(config, profile, fuse_into)

    def check_tower(self, model: Any) -> None:
        """
        Raises:
            ValueError: the tower is split.
        """
        parts = model.visual.tp_size
        if parts > 1:
            raise ValueError(
                f"the heads of the vision tower are split over {parts} devices, but the attention "
                f"of all is needed: start the server with --mm-encoder-tp-mode data"
            )

    def check_call(self, model: Any, inputs: Mapping[str, Any]) -> None:
        """vLLM's processor has checked the images."""

    def run_tower(self, model: Any, pixels: torch.Tensor, grid: torch.Tensor) -> TowerOutput:
        tower, sizes = model.visual, grid.tolist()
        states: dict[int, torch.Tensor] = {}
        attention = tower.blocks[self.salience_block].attn.attn
        lengths = [height * width for frames, height, width in sizes for _ in range(frames)]
        captured = CapturedAttention(
            scale=float(attention.scale), bounds=torch.tensor([0, *lengths]).cumsum(0)
        )

        def read_state(number: int, module: Any, arguments: tuple[Any, ...]) -> None:
            [state] = arguments
            # The mean is taken here because blocks overwrite the state.
            states[number] = self.by_token(state.squeeze(1)).mean(1)

        def read_attention(module: Any, arguments: Any, named: Mapping[str, Any]) -> None:
            query, key = (named[name].transpose(1, 2) for name in ("query", "key"))
            captured.calls.append((query, key))

        # The modules that read the state before each block, and after the last one.
        readers = [*(block.norm1 for block in tower.blocks), tower.merger.ln_q]
        hooks = [
            readers[number].register_forward_pre_hook(partial(read_state, number))
            for number in self.layers.states
        ]
        hooks.append(attention.register_forward_pre_hook(read_attention, with_kwargs=True))
        try:
            features = tower(pixels, grid_thw=sizes)
        finally:
            for hook in hooks:
                hook.remove()
        return TowerOutput(
            states=[states[number] for number in self.layers.states],
            features=features,
            deeper=(),
            attention=captured,
        )
