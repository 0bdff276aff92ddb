"""Prepare a model's inputs for one image and one question, and check them against the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clasp_kernels.cli.errors import CommandError, UsageError, in_one_line, refusing_as
from clasp_kernels.cli.loading import WITHOUT_TEMPLATE, LoadedModel

if TYPE_CHECKING:
    from PIL import Image

    from clasp_kernels.models.adapter import Adapter, View, VisualGroup


@dataclass(frozen=True)
class Prompt:
    """The model's inputs for one image and one question."""

    inputs: Any
    """The arguments of ``generate``."""
    counts: tuple[int, ...]
    """Visual tokens of each image in the prompt. The processor may make several of the one image,
    such as crops."""
    views: tuple[View, ...]
    """The pictures that the model sees, and where their visual tokens are."""

    @property
    def visual_tokens(self) -> int:
        return sum(self.counts)


def prepare(loaded: LoadedModel, adapter: Adapter, image: Image.Image, question: str) -> Prompt:
    """Prepare the prompt, on the model's device.

    Raises the errors of :func:`process`.
    """
    inputs, counts = process(loaded, adapter, image, question)
    with refusing_as(_said(loaded)):
        return Prompt(
            inputs.to(loaded.model.device, loaded.model.dtype),
            counts,
            tuple(adapter.views(inputs)),
        )


def process(
    loaded: LoadedModel, adapter: Adapter, image: Image.Image, question: str
) -> tuple[Any, tuple[int, ...]]:
    """Return what the processor makes of an image and a question, and the visual tokens of each
    image that it made of it.

    Raises a CommandError if processor and model do not match, and a UsageError for a question that
    contains an image token.
    """
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    prompt = _written(loaded, question, vocabulary)
    with refusing_as(_said(loaded)):
        inputs = loaded.processor(images=image, text=prompt, return_tensors="pt")
        groups = _checked_groups(loaded, adapter, inputs, vocabulary)
        return inputs, tuple(count for group in groups for count in group.counts)


def _said(loaded: LoadedModel) -> str:
    checked = [*_settings(loaded, _COUNTED[:1]), "the image processor"]
    return (
        f"the processor of {loaded.name} cannot prepare the image and the question, check "
        f"{_listed(checked)} in its processor_config.json"
    )


def _written(loaded: LoadedModel, question: str, vocabulary: int) -> str:
    """Return the prompt as text, with the token that marks the image."""
    config, processor = loaded.model.config, loaded.processor
    tokenizer = processor.tokenizer
    setting = config.attribute_map.get("image_token_id", "image_token_id")
    placeholder = None
    if isinstance(config.image_token_id, int) and 0 <= config.image_token_id < vocabulary:
        with refusing_as(f"the tokenizer of {loaded.name} does not work"):
            placeholder = tokenizer.convert_ids_to_tokens(config.image_token_id)
    if placeholder is None:
        raise CommandError(
            f"{loaded.name} has no image token: {setting} in its config.json is "
            f"{config.image_token_id}, which its tokenizer or its vocabulary of {vocabulary} "
            f"tokens does not have"
        )
    # A processor may use its own token for an image, and replace it by placeholders.
    mark = getattr(processor, "image_token", None) or placeholder
    for token in (placeholder, mark):
        if token in question:
            raise UsageError(
                f"QUESTION must not contain {token!r}, which stands for an image in the prompts "
                f"of {loaded.name}, got {question!r}"
            )
    if config.model_type in WITHOUT_TEMPLATE and processor.chat_template is None:
        return f"{mark}{question}"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    with refusing_as(f"the chat template of {loaded.name} does not work"):
        prompt: str = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
    if mark not in prompt:
        what = f"the token of {setting} in config.json"
        if mark != placeholder:
            what = "the image token of its processor"
        raise CommandError(
            f"the chat template of {loaded.name} puts no image into the prompt: it must write "
            f"{mark!r}, {what}"
        )
    return prompt


def _checked_groups(
    loaded: LoadedModel, adapter: Adapter, inputs: Any, vocabulary: int
) -> list[VisualGroup]:
    """Check that the inputs fit the model, and return their visual groups."""
    largest = int(inputs["input_ids"].max())
    if largest >= vocabulary:  # on a GPU this would be an opaque device-side assert
        raise CommandError(
            f"the tokenizer of {loaded.name} makes token {largest}, the model has only "
            f"{vocabulary} tokens: its tokenizer files are not those of this model"
        )
    given = [inputs[name] for name in adapter.pixel_arguments if inputs.get(name) is not None]
    if not given:
        raise CommandError(
            f"the processor of {loaded.name} makes no {' or '.join(adapter.pixel_arguments)} of "
            f"this image: the model's processor is another one"
        )
    if not all(pixels.isfinite().all() for pixels in given):
        raise CommandError(
            f"the processor of {loaded.name} makes pixels that are not finite: check image_mean, "
            f"image_std and rescale_factor in processor_config.json"
        )
    tower = loaded.model.config.vision_config
    for pixels in map(list, (pixels.shape for pixels in given)):
        if adapter.tokens_per_image() is not None and pixels[-2:] != [tower.image_size] * 2:
            raise CommandError(
                f"the processor of {loaded.name} makes pixels of shape {pixels}, the model takes "
                f"{tower.image_size} x {tower.image_size}: check size, crop_size, do_resize and "
                f"do_center_crop in processor_config.json"
            )
    try:
        groups = adapter.groups(inputs)
    except (TypeError, ValueError) as error:
        raise CommandError(
            f"the processor of {loaded.name} does not fit the model: {in_one_line(error)}"
        ) from None
    for group in groups:
        made = int((inputs["input_ids"] == group.token_id).sum())
        wanted = sum(group.placeholders)
        if made != wanted:
            raise CommandError(
                f"the processor of {loaded.name} makes {made} image tokens of this image, the "
                f"model {wanted}: check {_listed(_settings(loaded, _COUNTED))} in "
                f"processor_config.json"
            )
    return groups


# Processor settings that determine the number of an image's tokens, if the processor has them.
_COUNTED = (
    "patch_size",
    "spatial_merge_size",
    "num_additional_image_tokens",
    "vision_feature_select_strategy",
    "num_image_tokens",
    "vision_aspect_ratio",
    "image_seq_length",
    "image_seq_len",
)


def _settings(loaded: LoadedModel, names: Sequence[str]) -> list[str]:
    return [name for name in names if hasattr(loaded.processor, name)]


def _listed(names: Sequence[str]) -> str:
    """Join names with commas and "and".

    >>> _listed(["a", "b", "c"]), _listed(["a"]), _listed([])
    ('a, b and c', 'a', 'the image processor')
    """
    if not names:
        return "the image processor"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
