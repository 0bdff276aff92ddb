"""Encode and prune images outside vLLM, which gets their embeddings in place of pixels."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from clasp_kernels.models import ClaspHandle, EncodedImage, apply_clasp
from clasp_kernels.models.compat import require_transformers
from clasp_kernels.policy import Profile, RouterLike

_FAMILY = "llava"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt with its encoded and pruned images."""

    prompt: str
    images: tuple[EncodedImage, ...]
    """The images of the prompt in order, with what was kept of each."""

    @property
    def embeds(self) -> torch.Tensor | list[torch.Tensor]:
        """What vLLM takes for the images: [1, kept, text width] for one image, else a list with a
        [kept, text width] for each. On the CPU."""
        each = [image.features.cpu() for image in self.images]
        return each[0][None] if len(each) == 1 else each

    @property
    def request(self) -> dict[str, Any]:
        """The prompt as ``LLM.generate`` of vLLM takes it."""
        if not self.images:
            return {"prompt": self.prompt}
        return {"prompt": self.prompt, "multi_modal_data": {"image": self.embeds}}

    @property
    def content(self) -> list[dict[str, str]]:
        """The images as parts of a message's ``content`` for vLLM's OpenAI-compatible server."""
        return [
            {"type": "image_embeds", "image_embeds": _base64(image.features.cpu())}
            for image in self.images
        ]


class PrunedEncoder:
    """The vision tower, the projector and the token selection of a LLaVA, without its decoder.

    vLLM then generates with ``enable_mm_embeds=True``. It numbers the positions of the kept tokens
    without gaps, so its answers are those of ``apply_clasp(..., positions="compact")``.

    Args:
        model: the folder or hub name of a LLaVA, whose decoder layers are then not loaded; or a
            loaded model, which stays patched until ``remove()``.
        processor: the model's processor. The default is loaded from ``model`` if that is a name.
        budget: visual tokens kept per image, or the fraction of them, as in ``apply_clasp``.
        profile: as in ``apply_clasp``.
        rule: as in ``apply_clasp``.
        router: as in ``apply_clasp``.
        fuse_into: as in ``apply_clasp``.
        merge: as in ``apply_clasp``.
        ragged: whether the server takes embeddings of different lengths. vLLM 0.32 does only with
            this package's plugin. Without it, its engine dies on the first batch that has two
            lengths (``LlavaImageEmbeddingInputs`` in ``vllm/model_executor/models/llava.py`` wants
            one tensor). So False, the default, refuses a profile whose categories keep different
            numbers of tokens. Requests of encoders with different budgets must not be mixed either.
        dtype: of the weights, if ``model`` is a name.
        device: of the weights, if ``model`` is a name.

    Raises:
        ValueError, TypeError: as ``apply_clasp``; the model is no LLaVA; or the categories keep
            different numbers of tokens.

    >>> from PIL import Image
    >>> from clasp_kernels.bundled import tiny_vlm_path
    >>> encoder = PrunedEncoder(tiny_vlm_path(), budget=16)
    >>> [encoded] = encoder.encode(
    ...     [Image.new("RGB", (96, 96))], ["USER: <image>\\nHow many circles are there? ASSISTANT:"]
    ... )
    >>> encoded.embeds.shape, encoded.images[0].category
    (torch.Size([1, 16, 96]), 'counting')
    """

    handle: ClaspHandle
    """The handle of the patched model."""

    def __init__(
        self,
        model: Any,
        processor: Any | None = None,
        *,
        budget: int | float,
        profile: Profile | None = None,
        rule: str | None = None,
        router: RouterLike | None = None,
        fuse_into: str | None = None,
        merge: bool = False,
        ragged: bool = False,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        require_transformers()
        if budget is None:
            raise TypeError("budget must be a number of visual tokens or a fraction, got None")
        if isinstance(model, (str, Path)):
            if processor is None:
                from transformers import AutoProcessor

                processor = AutoProcessor.from_pretrained(model)
            model = load_without_decoder(str(model), dtype, device)
        model_type = getattr(getattr(model, "config", None), "model_type", None)
        if model_type != _FAMILY:
            raise ValueError(
                f"model must be a {_FAMILY!r} model (LLaVA 1.5), whose embeddings vLLM takes as "
                f"they are, got {model_type!r}"
            )
        if processor is None:
            raise ValueError("processor must be given with a loaded model, got None")
        self.processor = processor
        self.handle = apply_clasp(
            model,
            budget=budget,
            profile=profile,
            rule=rule,
            router=router,
            processor=processor,
            fuse_into=fuse_into,
            merge=merge,
        )
        if not ragged:
            try:
                check_lengths(self.handle)
            except ValueError:
                self.handle.remove()
                raise

    def encode(
        self,
        images: Sequence[Any],
        prompts: Sequence[str],
        categories: str | Sequence[str] | None = None,
    ) -> list[EncodedPrompt]:
        """Encode the images of prompts and prune them.

        Args:
            images: for each prompt an image (PIL, NumPy or torch), or a list of images, which is
                empty if the prompt has none.
            prompts: the prompts as the model reads them, with the image token where images are.
            categories: one name or one per prompt; the default asks the router.

        Returns:
            One for each prompt.

        Raises:
            ValueError: images and prompts do not match.
            TypeError: ``images`` holds something else.
            RuntimeError: the encoder was removed.
        """
        lists = isinstance(images, (list, tuple)) and isinstance(prompts, (list, tuple))
        if not lists or len(images) != len(prompts):
            raise ValueError(
                f"images and prompts must be lists of equal length, got {_told(images)} and "
                f"{_told(prompts)}"
            )
        by_prompt = [list(each) if isinstance(each, (list, tuple)) else [each] for each in images]
        for number, (prompt, mine) in enumerate(zip(prompts, by_prompt, strict=True)):
            _check_images(number, mine, prompt.count(self.processor.image_token))
        if not any(by_prompt):
            return [EncodedPrompt(prompt, ()) for prompt in prompts]
        inputs = self.processor(
            images=[image for each in by_prompt for image in each],
            text=list(prompts),
            padding=True,
            return_tensors="pt",
        ).to(self.handle.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.handle.model.dtype)
        encoded = self.handle.encode(categories, **inputs)
        return [
            EncodedPrompt(prompt, tuple(image for image in encoded if image.prompt == number))
            for number, prompt in enumerate(prompts)
        ]

    def remove(self) -> None:
        """Restore the model's original methods."""
        self.handle.remove()

    def __enter__(self) -> PrunedEncoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def load_without_decoder(source: str, dtype: torch.dtype, device: str | torch.device) -> Any:
    """Load a LLaVA from a folder or the hub without the weights of its decoder layers."""
    from transformers import AutoConfig, LlavaForConditionalGeneration

    config = AutoConfig.from_pretrained(source)
    if config.model_type != _FAMILY:
        raise ValueError(
            f"model must name a {_FAMILY!r} model (LLaVA 1.5), whose embeddings vLLM takes as they "
            f"are, got {source!r} of model_type {config.model_type!r}"
        )
    text = config.get_text_config()
    text.num_hidden_layers = 0
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = []
    # So that transformers does not report the weights of the layers that are missing.
    without_layers: Any = type(
        LlavaForConditionalGeneration.__name__,
        (LlavaForConditionalGeneration,),
        {"_keys_to_ignore_on_load_unexpected": [r"language_model\.layers\."]},
    )
    model = without_layers.from_pretrained(source, config=config, dtype=dtype)
    return model.eval().to(device)


def check_lengths(handle: ClaspHandle) -> None:
    """
    Raises:
        ValueError: the categories keep different numbers of tokens.
    """
    tokens = handle.adapter.tokens_per_image()
    assert tokens is not None
    kept = {
        name: handle.selector.counts(0, [name], [tokens])[0]
        for name in handle.profile.category_names
    }
    if len(set(kept.values())) > 1:
        raise ValueError(
            f"profile must keep equally many tokens in every category, because vLLM's engine dies "
            f"on a batch of embeddings with different lengths; profile {handle.profile.name!r} "
            f"keeps {kept}. Set every budget_scale to 1, or pass ragged=True if the server runs "
            f"this package's plugin"
        )


def _told(given: Any) -> str:
    if isinstance(given, (list, tuple)):
        return f"a list of {len(given)}"
    return "a text" if isinstance(given, str) else f"{type(given).__name__}"


def _check_images(number: int, images: list[Any], tokens: int) -> None:
    import numpy as np
    from PIL import Image

    for image in images:
        if not isinstance(image, (Image.Image, np.ndarray, torch.Tensor)):
            raise TypeError(
                f"images must hold images of PIL, NumPy or torch, got {image!r} for prompt {number}"
            )
    if tokens != len(images):
        raise ValueError(
            f"images and image tokens must match: prompt {number} has {tokens} image tokens, and "
            f"{len(images)} images were given for it"
        )


def _base64(tensor: torch.Tensor) -> str:
    with io.BytesIO() as buffer:
        torch.save(tensor.clone(), buffer)
        return base64.b64encode(buffer.getvalue()).decode()
