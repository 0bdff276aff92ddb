"""A model's inputs for one image and one question, and whether its processor fits it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clasp_kernels.cli.errors import CommandError, UsageError, refusing_as
from clasp_kernels.cli.loading import LoadedModel

if TYPE_CHECKING:
    from PIL import Image


# The families whose prompts and pictures are made here.
_ASKED = ("llava",)


def prepare(loaded: LoadedModel, image: Image.Image, question: str) -> Any:
    """What ``generate`` takes. Raises a CommandError where processor and model do not fit."""
    config = loaded.model.config
    if config.model_type not in _ASKED:
        raise CommandError(
            f"{loaded.name} is a {config.model_type!r} model, of which the command line does not "
            f"ask yet: it asks {' and '.join(map(repr, _ASKED))} models; apply_clasp() in Python "
            f"prunes it"
        )
    tokenizer = loaded.processor.tokenizer
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    placeholder = None
    if isinstance(config.image_token_id, int) and 0 <= config.image_token_id < vocabulary:
        with refusing_as(f"the tokenizer of {loaded.name} does not work"):
            placeholder = tokenizer.convert_ids_to_tokens(config.image_token_id)
    if placeholder is None:
        raise CommandError(
            f"{loaded.name} has no image token: image_token_index in its config.json is "
            f"{config.image_token_id}, which its tokenizer or its vocabulary of {vocabulary} "
            f"tokens does not have"
        )
    if placeholder in question:
        raise UsageError(
            f"QUESTION must not contain {placeholder!r}, which stands for an image in the prompts "
            f"of {loaded.name}, got {question!r}"
        )
    content = [{"type": "image"}, {"type": "text", "text": question}]
    with refusing_as(f"the chat template of {loaded.name} does not work"):
        prompt = loaded.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
    if placeholder not in prompt:
        raise CommandError(
            f"the chat template of {loaded.name} puts no image into the prompt: it must write "
            f"{placeholder!r}, the token of image_token_index in config.json"
        )
    said = (
        f"the processor of {loaded.name} cannot prepare the image and the question, check "
        f"patch_size and the image processor in its processor_config.json"
    )
    with refusing_as(said):
        inputs = loaded.processor(images=image, text=prompt, return_tensors="pt")
        _check_numbers(loaded, inputs, vocabulary)
        return inputs.to(loaded.model.device, loaded.model.dtype)


def _check_numbers(loaded: LoadedModel, inputs: Any, vocabulary: int) -> None:
    from clasp_kernels.models.families.llava import tokens_per_image

    largest = int(inputs["input_ids"].max())
    if largest >= vocabulary:  # on a GPU no later error would say so
        raise CommandError(
            f"the tokenizer of {loaded.name} makes token {largest}, the model has only "
            f"{vocabulary} tokens: its tokenizer files are not those of this model"
        )
    if not inputs["pixel_values"].isfinite().all():
        raise CommandError(
            f"the processor of {loaded.name} makes pixels that are no numbers: check image_mean, "
            f"image_std and rescale_factor in processor_config.json"
        )
    tower = loaded.model.config.vision_config
    pixels = list(inputs["pixel_values"].shape)
    if pixels[-2:] != [tower.image_size] * 2:
        raise CommandError(
            f"the processor of {loaded.name} makes pixels of shape {pixels}, the model takes "
            f"{tower.image_size} x {tower.image_size}: check size, crop_size, do_resize and "
            f"do_center_crop in processor_config.json"
        )
    made = int((inputs["input_ids"] == loaded.model.config.image_token_id).sum())
    wanted = tokens_per_image(loaded.model.config)
    if made != wanted:
        raise CommandError(
            f"the processor of {loaded.name} makes {made} image tokens of this image, the model "
            f"{wanted}: check patch_size, num_additional_image_tokens and "
            f"vision_feature_select_strategy in processor_config.json"
        )
