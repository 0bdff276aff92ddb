"""Getting the model and the image that a command asks about."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.cli.checkpoint import check_name, find_checkpoint
from clasp_kernels.cli.errors import (
    CommandError,
    UsageError,
    first_line,
    in_one_line,
    refusing_as,
)
from clasp_kernels.cli.files import check_readable
from clasp_kernels.cli.processor import load_processor
from clasp_kernels.policy import Profile

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be asked, and what it is called."""

    model: Any
    processor: Any
    name: str


def load_image(path: str | Path) -> Image.Image:
    """The picture in a file, turned upright, as RGB; what is transparent becomes white."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    check_readable("IMAGE", str(path))
    cannot = f"IMAGE: {path} cannot be read"
    try:
        with warnings.catch_warnings():
            # The picture was asked for by name; what Pillow finds too large is an error below.
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                opened.load()
                cannot += ", its EXIF data is damaged"
                image = ImageOps.exif_transpose(opened)
        cannot = f"IMAGE: {path} cannot be shown to a model"
        if 0 in image.size:
            raise ValueError("it has no pixels")
        return _as_rgb(image)
    except UnidentifiedImageError:
        raise CommandError(
            f"IMAGE: {path} is not an image that Pillow can read (PNG, JPEG, WebP, ...)"
        ) from None
    # A damaged file makes Pillow's many readers raise anything: struct.error, TypeError, ...
    except Exception as error:
        raise CommandError(f"{cannot}: {in_one_line(error)}") from None


def _as_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode in ("I", "F"):
        raise ValueError(
            f"it has 32-bit pixels (Pillow's mode {image.mode}), whose black and white are not "
            f"known: convert it to 8 or 16 bits"
        )
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips all above 255 to white
        return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("RGB")
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        image = page
    return image.convert("RGB")


def pick_device(device: str) -> str:
    """``auto`` is CUDA where there is one; anything else must be a device torch can use here."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not device:
        raise UsageError("--device must name a device, got an empty argument")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.ones(1, device=device).item()  # read back, as "meta" holds no numbers
    # Each kind of device that torch was not built for, or has no driver for, has its own error.
    except Exception as error:
        reason = first_line(error).split(". ")[0]  # what follows is for who builds torch
        raise CommandError(f"--device {device} cannot be used here: {reason}") from None
    return device


def load_model(path_or_id: str | None, device: str) -> LoadedModel:
    """A model and its processor from a folder or the Hugging Face hub; None is the bundled one."""
    try:
        source = str(tiny_vlm_path()) if path_or_id is None else path_or_id
    except FileNotFoundError as error:
        raise CommandError(str(error)) from None
    model, options = _load(source, device)
    with _loading(source):
        processor = load_processor(source, **options)
    if getattr(processor, "chat_template", None) is None:
        raise CommandError(
            f"--model {source}: its processor has no chat template, so the prompt's layout is "
            f"not known"
        )
    name = "the bundled tiny LLaVA" if path_or_id is None else path_or_id
    return LoadedModel(model, processor, name)


def load_weights(source: str, device: str) -> Any:
    """A model alone, from a folder or the Hugging Face hub."""
    return _load(source, device)[0]


def _load(source: str, device: str) -> tuple[Any, dict[str, Any]]:
    """A model, and the options for loading what else belongs to it."""
    check_name(source)  # before what takes seconds to import
    import torch

    from clasp_kernels.models import supported_model_types
    from clasp_kernels.models.compat import require_transformers

    require_transformers(warn=False)
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    on = pick_device(device)
    checkpoint = find_checkpoint(source)
    # Asked about code that a checkpoint brings along, transformers would wait for an answer.
    options: dict[str, Any] = {
        "local_files_only": checkpoint.local_only,
        "trust_remote_code": False,
    }
    with _loading(source):
        config = transformers.AutoConfig.from_pretrained(source, **options)
    if config.model_type not in supported_model_types():
        raise CommandError(
            f"--model {source} cannot be pruned: its model_type must be "
            f"{' or '.join(map(repr, supported_model_types()))}, got {config.model_type!r}"
        )
    # A checkpoint's bf16 is slow on most CPUs.
    dtype: Any = torch.float32 if torch.device(on).type == "cpu" else "auto"
    with _loading(source):
        loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=dtype,
            # What does not fit is then in ``found``; the error would only point to a log.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
        model, found = loaded
        unfit = sorted(found["mismatched_keys"])
        if unfit:
            name, there, wanted = unfit[0]
            raise ValueError(
                f"its weights are not those of its config.json: {name} has the shape "
                f"{list(there)}, not {list(wanted)}"
            )
        missing = sorted(found["missing_keys"])
        if missing:  # transformers draws them at random
            raise ValueError(
                f"its weights lack {len(missing)} of the model's parameters, such as {missing[0]}"
            )
        return model.eval().to(on), options


@contextmanager
def _loading(source: str) -> Iterator[None]:
    """A damaged folder fails in whatever reads it: safetensors, tokenizers, json, torch, ..."""
    with (
        refusing_as(f"--model {source} cannot be loaded as an image-text model"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def load_profile(path: str | Path) -> Profile:
    """The profile in a file."""
    check_readable("--profile", str(path))
    try:
        return Profile.load(path)
    except OSError as error:
        raise CommandError(f"--profile: {path}: {in_one_line(error)}") from None
    except (ValueError, RecursionError) as error:
        raise CommandError(f"--profile: {in_one_line(error)}") from None
