"""Getting the model and the image that a command asks about."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.cli.errors import CommandError, UsageError, in_one_line
from clasp_kernels.policy import Profile

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be asked, and what it is called."""

    model: Any
    processor: Any
    name: str


def load_image(path: Path) -> Image.Image:
    """The picture in a file, turned upright, as RGB; what is transparent becomes white."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # The picture was asked for by name; what Pillow finds too large is an error below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                image = ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise UsageError(f"IMAGE: there is no file {path}") from None
    except IsADirectoryError:
        raise UsageError(f"IMAGE: {path} is a folder, not a file") from None
    except UnidentifiedImageError:
        raise CommandError(
            f"IMAGE: {path} is not an image that Pillow can read (PNG, JPEG, WebP, ...)"
        ) from None
    # Cut short, unreadable, or huge; broken metadata and headers are SyntaxError and ValueError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CommandError(f"IMAGE: {path} cannot be read: {error}") from None
    if image.mode in ("I", "F"):
        raise CommandError(
            f"IMAGE: {path} has 32-bit pixels (Pillow's mode {image.mode}), whose black and white "
            f"are not known: convert it to 8 or 16 bits"
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
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_line = str(error).splitlines()[0]
        raise CommandError(f"--device {device} cannot be used here: {first_line}") from None
    return device


def load_model(path_or_id: str | None, device: str) -> LoadedModel:
    """A model and its processor from a folder or the Hugging Face hub; None is the bundled one."""
    try:
        source = str(tiny_vlm_path()) if path_or_id is None else path_or_id
    except FileNotFoundError as error:
        raise CommandError(str(error)) from None
    model = load_weights(source, device)
    import transformers

    with _refusing(source):
        processor = transformers.AutoProcessor.from_pretrained(source)
    if getattr(processor, "chat_template", None) is None:
        raise CommandError(
            f"--model {source}: its processor has no chat template, so the prompt's layout is "
            f"not known"
        )
    name = "the bundled tiny LLaVA" if path_or_id is None else path_or_id
    return LoadedModel(model, processor, name)


def load_weights(source: str, device: str) -> Any:
    """A model alone, from a folder or the Hugging Face hub."""
    import torch

    from clasp_kernels.models.compat import require_transformers

    require_transformers(warn=False)
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    on = pick_device(device)
    # A checkpoint's bf16 is slow on most CPUs.
    dtype: Any = torch.float32 if on == "cpu" else "auto"
    with _refusing(source):
        model = transformers.AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)
    return model.eval().to(on)


@contextmanager
def _refusing(source: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    # A damaged folder fails in whatever reads it: safetensors, tokenizers, json, torch, ...
    except Exception as error:
        raise CommandError(
            f"--model {source} cannot be loaded as an image-text model: {in_one_line(error)}"
        ) from None


def load_profile(path: Path) -> Profile:
    """The profile in a file."""
    try:
        return Profile.load(path)
    except (OSError, ValueError) as error:
        raise CommandError(f"--profile: {error}") from None
