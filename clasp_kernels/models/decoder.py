"""Patch the decoder layers of a model so that tokens can be dropped between them.

``forward`` passes a ``LayerInputs`` to the layers as a keyword argument, which every decoder in
transformers passes through. So the model holds no state of a prefill, a layer without the keyword
runs unchanged, and compiled decoding sees only tensors.
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

#: Keyword argument of the layers in a prefill: a ``LayerInputs``.
PRUNING = "clasp_pruning"
#: Keyword argument of the layers in a decode step: (distinct masks, index of each layer's mask).
#: Each mask is passed once, because device hooks move every tensor that a layer is given.
MASKS = "clasp_masks"
# The attribute of a layer that holds its number.
_NUMBER = "_clasp_layer"


class LayerInputs(Protocol):
    """The state of one prefill, as the decoder layers use it."""

    seam: DecoderSeam
    """The seam of the model that runs the prefill."""

    def enter(self, layer: int, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments to run a layer with. Called before it runs."""

    def wants_attention(self, layer: int) -> bool:
        """Return whether query and key of a layer are to be captured for ``attended``."""

    def attended(self, layer: int, attention: CapturedAttention) -> None:
        """Receive the captured query and key. Called after the layer has run."""

    def leave(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Return the hidden states for the next layer. Called after the layer has run."""


def refusal(config: Any) -> str:
    """Return why a decoder cannot be pruned between its layers; empty if it can."""
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
        """Check the decoder. ``parts`` and ``numbers`` make the patches.

        ``stages`` has the numbers of layers after which tokens are dropped; it may be empty.

        Raises:
            ValueError: salience cannot be computed from this decoder's attention, or its cache
                cannot hold different columns in different layers.
            RuntimeError, TypeError: this decoder is not supported.
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
        """Return patches that set each layer's number. The model holds them: if the layer held
        them, they would refer back to it and make a reference cycle."""
        layers = enumerate(decoder_layers(model))
        return [Patch(layer, _NUMBER, number) for number, layer in layers]

    def parts(self, model: Any) -> Iterator[tuple[Any, MethodPatches]]:
        """Patch every layer one by one: its forward and, before a stage, its attention's config.
        The config only acts during ``listen``."""
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
            RuntimeError: layers were replaced or removed since they were patched.
            ValueError: ``inputs``, forward's arguments, ask for router logits, which need the same
                columns in all layers.
        """
        config = model.config.get_text_config()
        given = inputs.get("output_router_logits")
        wanted = getattr(config, "output_router_logits", False) if given is None else given
        if wanted and self._listeners:
            raise ValueError(
                "output_router_logits must be False if a schedule drops tokens inside the decoder, "
                "because the load-balancing loss needs the same columns in all layers"
            )
        layers = getattr(model.get_decoder(), "layers", ())
        # A wrapper around a layer, such as torch.compile's, has the layer among its modules.
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
        if pruning is None or pruning.seam is not self:  # another model may share this layer
            return original(*args, **kwargs)
        del kwargs[PRUNING]
        index = getattr(layer, _NUMBER)
        names = self._names
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(args) > len(names):
            raise RuntimeError(
                f"{type(layer).__name__} was called with {len(args)} positional arguments, but "
                f"only the names of the first {len(names)} are known; use a schedule that prunes "
                f"before the decoder"
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
    """Return the names of a layer's positional arguments.

    A wrapper that only shows ``*args`` is assumed to take the hidden states first.
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(p.name for p in signature.parameters.values() if p.kind in kinds)
    return names or ("hidden_states",)


def _call(original: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call with the hidden states as first positional argument: gradient checkpointing needs the
    tensors with a gradient to be positional."""
    others = {name: value for name, value in arguments.items() if name != "hidden_states"}
    return original(arguments["hidden_states"], **others)


def columns_of(value: Any, source: torch.Tensor, dim: int) -> Any:
    """Take columns of a tensor, or of each tensor in a tuple, along ``dim``, -1 or -2.

    ``source`` [rows, new columns] has their indices. The dimension before the columns is rows; it
    may have size 1.
    """
    if isinstance(value, tuple):
        return tuple(columns_of(item, source, dim) for item in value)
    source = source.to(value.device)
    if dim == -2:
        source = source[..., None]
    return value.take_along_dim(source[(None,) * (value.ndim - source.ndim)], dim=dim)


def names_by_column(arguments: Mapping[str, Any], columns: int) -> list[str]:
    """Return the names of arguments with a tensor of size ``columns`` in a dimension after the
    first."""

    def by_column(value: Any) -> bool:
        if isinstance(value, (tuple, list)):
            return any(by_column(item) for item in value)
        return isinstance(value, torch.Tensor) and columns in value.shape[1:]

    return [name for name, value in arguments.items() if by_column(value)]
