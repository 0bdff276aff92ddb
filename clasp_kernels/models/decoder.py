"""The layers of a model's decoder, patched so that tokens can be dropped between them.

What is dropped, or added to hidden states after a layer, travels from ``forward`` to the layers as
a keyword, which every decoder of transformers hands on. So nothing is kept in the model, a layer
that nobody told anything runs as it did, and compiled decoding finds tensors only.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from clasp_kernels.models.capture import AttentionListener, CapturedAttention
from clasp_kernels.models.compat import (
    attention_modules,
    decoder_layers,
    method_signature,
    recurrent_kinds,
)
from clasp_kernels.models.patching import MethodPatches, Patch

#: The keyword of a prefill that layers take part in: a ``LayerInputs``.
PRUNING = "clasp_pruning"
#: The keyword of a decode step: the masks that differ, and for each layer which of them it gets.
#: Device hooks of layers move all that they are given, so each mask is there once.
MASKS = "clasp_masks"
# The attribute under which a layer finds its number.
_NUMBER = "_clasp_layer"


class LayerInputs(Protocol):
    """One prefill, seen from the decoder's layers."""

    seam: DecoderSeam
    """Of the model whose prefill it is."""

    def enter(self, layer: int, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments that a layer should get instead, before it runs."""

    def wants_attention(self, layer: int) -> bool:
        """Whether ``attended`` is to be told what a layer's attention is computed from."""

    def attended(self, layer: int, attention: CapturedAttention) -> None:
        """Called once the layer has run."""

    def leave(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states that the next layer should get, after a layer has run."""


def refusal(config: Any) -> str:
    """Why a decoder cannot be pruned between its layers; empty if it can."""
    before = "cannot be pruned inside the decoder; use a schedule that prunes before it"
    others = recurrent_kinds(config)
    if others:
        return f"a decoder with layers of {' and '.join(others)} {before}"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return f"a decoder that caps its attention logits {before}"
    if getattr(config, "num_kv_shared_layers", 0):
        return f"a decoder whose layers share keys and values {before}"
    return ""


class DecoderSeam:
    """The patches of one model's decoder layers."""

    def __init__(self, model: Any, stages: Sequence[int]) -> None:
        """Tokens may be dropped once ``stages`` layers have run, if any. Changes nothing yet.

        Raises:
            ValueError: salience cannot be taken from this decoder's attention, or its cache cannot
                hold columns that differ from layer to layer.
            RuntimeError, TypeError: this decoder cannot be followed.
        """
        problem = refusal(model.config.get_text_config()) if stages else ""
        if problem:
            raise ValueError(problem)
        layers = decoder_layers(model)
        self._listeners = {
            stage - 1: AttentionListener(*attention_modules(layers[stage - 1], 1))
            for stage in stages
        }
        self.num_layers = len(layers)
        self._names = _positional(method_signature(layers[0], "forward"))

    def numbers(self, model: Any) -> list[Patch]:
        """Patches that tell each layer its number. Its own patches would hold it in a cycle."""
        layers = enumerate(decoder_layers(model))
        return [Patch(layer, _NUMBER, number) for number, layer in layers]

    def parts(self, model: Any) -> Iterator[tuple[Any, MethodPatches]]:
        """Patch every layer, one after the other: its forward, and the attention that is listened
        to, which changes nothing while nobody does."""
        tokens: dict[type, str] = {}
        for number, layer in enumerate(decoder_layers(model)):
            attributes = []
            if number in self._listeners:
                [attention] = attention_modules(layer, 1)
                attributes.append(self._listeners[number].patch(attention))
            signature = method_signature(layer, "forward")
            yield (
                layer,
                MethodPatches(
                    layer,
                    {"forward": self._forward},
                    {"forward": signature},
                    attributes,
                    token=tokens.setdefault(type(layer), uuid.uuid4().hex),
                ),
            )

    def check(self, model: Any, inputs: Mapping[str, Any]) -> None:
        """
        Raises:
            RuntimeError: layers were replaced, or left out, since they were patched.
            ValueError: ``inputs``, forward's arguments, ask for what layers cannot tell any more.
        """
        config = model.config.get_text_config()
        given = inputs.get("output_router_logits")
        wanted = getattr(config, "output_router_logits", False) if given is None else given
        if wanted and self._listeners:
            raise ValueError(
                "output_router_logits must be False where a schedule drops tokens inside the "
                "decoder: the balance of experts is counted over columns that all layers have"
            )
        layers = getattr(model.get_decoder(), "layers", ())
        # What wraps a layer, as compiling does, has it inside.
        ours = [any(MethodPatches.of(part) for part in layer.modules()) for layer in layers]
        if len(ours) != self.num_layers or not all(ours):
            raise RuntimeError(
                f"the model has {len(ours)} decoder layers, of which {sum(ours)} are among the "
                f"{self.num_layers} that apply_clasp patched, so tokens cannot be dropped between "
                f"them: remove() the handle and apply again"
            )

    def _forward(
        self,
        layer: Any,
        original: Callable[..., Any],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        masks = kwargs.pop(MASKS, None)
        if masks is not None:
            different, which = masks
            mask = different[which[getattr(layer, _NUMBER)]]
            return original(*args, **{**kwargs, "attention_mask": mask})
        pruning: LayerInputs | None = kwargs.get(PRUNING)
        if pruning is None or pruning.seam is not self:  # or it is of another model with this layer
            return original(*args, **kwargs)
        del kwargs[PRUNING]
        index = getattr(layer, _NUMBER)
        names = self._names
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(args) > len(names):
            raise RuntimeError(
                f"{type(layer).__name__} is given {len(args)} arguments without names, so it "
                f"cannot be told what they are; use a schedule that prunes before the decoder"
            )
        arguments = pruning.enter(index, given)
        if index in self._listeners and pruning.wants_attention(index):
            return pruning.leave(index, self._listen(index, pruning, original, arguments))
        return pruning.leave(index, _call(original, arguments))

    @torch.compiler.disable
    def _listen(
        self,
        index: int,
        pruning: LayerInputs,
        original: Callable[..., Any],
        arguments: dict[str, Any],
    ) -> Any:
        with self._listeners[index].listen() as captured:
            output = _call(original, arguments)
        pruning.attended(index, captured)
        return output


def _positional(signature: inspect.Signature) -> tuple[str, ...]:
    """The names of the arguments that a layer may be given without; the first by every wrapper."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(p.name for p in signature.parameters.values() if p.kind in kinds)
    return names or ("hidden_states",)


def _call(original: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Hidden states come first and without a name, as checkpointing wants what has a gradient."""
    others = {name: value for name, value in arguments.items() if name != "hidden_states"}
    return original(arguments["hidden_states"], **others)


def columns_of(value: Any, source: torch.Tensor, dim: int) -> Any:
    """Some columns of a tensor, or of each in a tuple, which has them along ``dim``, -1 or -2.

    ``source`` [rows, new columns] says which; rows are the dimension before, where one row may
    stand for all.
    """
    if isinstance(value, tuple):
        return tuple(columns_of(item, source, dim) for item in value)
    source = source.to(value.device)
    if dim == -2:
        source = source[..., None]
    return value.take_along_dim(source[(None,) * (value.ndim - source.ndim)], dim=dim)


def names_by_column(arguments: Mapping[str, Any], columns: int) -> list[str]:
    """The arguments that hold tensors with so many columns, in a dimension past the first."""

    def by_column(value: Any) -> bool:
        if isinstance(value, (tuple, list)):
            return any(by_column(item) for item in value)
        return isinstance(value, torch.Tensor) and columns in value.shape[1:]

    return [name for name, value in arguments.items() if by_column(value)]
