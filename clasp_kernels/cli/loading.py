"""Load the model and the image of a command."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

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


#: Families whose released models come without a chat template: the question follows the image.
WITHOUT_TEMPLATE = ("paligemma",)


@dataclass(frozen=True)
class LoadedModel:
    """A model with its processor and display name."""

    model: Any
    processor: Any
    name: str


def load_image(path: str | Path) -> Image.Image:
    """Load a picture as RGB, rotated by its EXIF data. Transparent pixels become white."""
    check_readable("IMAGE", str(path))
    return decode_image(path, f"IMAGE: {path}")


def decode_image(file: str | Path | IO[bytes], called: str) -> Image.Image:
    """Load a picture as RGB, from a file that a message speaks of as ``called``."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    cannot = f"{called} cannot be read"
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures, but the user has named this one. Pictures above
            # Pillow's hard limit raise an error below.
            warnings.simplefilter("ignore")
            with Image.open(file) as opened:
                opened.load()
                cannot += ", its EXIF data is damaged"
                image = ImageOps.exif_transpose(opened)
        cannot = f"{called} cannot be shown to a model"
        if 0 in image.size:
            raise ValueError("it has no pixels")
        return _as_rgb(image)
    except UnidentifiedImageError:
        raise CommandError(
            f"{called} is not an image that Pillow can read (PNG, JPEG, WebP, ...)"
        ) from None
    # Pillow's readers raise errors of many types for a damaged file: struct.error, TypeError, ...
    except Exception as error:
        raise CommandError(f"{cannot}: {in_one_line(error)}") from None


def _as_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode in ("I", "F"):
        raise ValueError(
            f"it has 32-bit pixels (Pillow's mode {image.mode}), whose black and white are not "
            f"known: convert it to 8 or 16 bits"
        )
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips values above 255 to white
        return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("RGB")
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        image = page
    return image.convert("RGB")


def pick_device(device: str) -> str:
    """Return the device: CUDA or the CPU for ``auto``, else ``device`` if torch can use it."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not device:
        raise UsageError("--device must name a device, got an empty argument")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.ones(1, device=device).item()  # item() fails on "meta", which has no data
    # The error type depends on the device that torch lacks support or a driver for.
    except Exception as error:
        reason = first_line(error).split(". ")[0]  # the rest is for people who build torch
        raise CommandError(f"--device {device} cannot be used here: {reason}") from None
    return device


def load_model(path_or_id: str | None, device: str, revision: str | None = None) -> LoadedModel:
    """Load a model and its processor from a folder or the hub; None is the bundled model.

    ``revision`` is a commit on the hub; None is the newest.
    """
    try:
        source = str(tiny_vlm_path()) if path_or_id is None else path_or_id
    except FileNotFoundError as error:
        raise CommandError(str(error)) from None
    model, options = _load(source, device, revision)
    return _with_processor(model, source, path_or_id, options)


def load_skeleton(path_or_id: str | None) -> LoadedModel:
    """Load a model without its weights, and its processor, to check what is meant for them.

    Its parameters are on the device ``meta``.
    """
    source = str(tiny_vlm_path()) if path_or_id is None else path_or_id
    check_name(source)  # before the imports, which take seconds
    import torch

    transformers, config, options = _configured(source)
    with _loading(source), torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    return _with_processor(model.eval(), source, path_or_id, options)


def _with_processor(
    model: Any, source: str, path_or_id: str | None, options: dict[str, Any]
) -> LoadedModel:
    with _loading(source):
        processor = load_processor(source, **options)
    has_template = getattr(processor, "chat_template", None) is not None
    if not has_template and model.config.model_type not in WITHOUT_TEMPLATE:
        raise CommandError(
            f"--model {source}: its processor has no chat template, so the prompt's layout is "
            f"not known"
        )
    name = "the bundled tiny LLaVA" if path_or_id is None else path_or_id
    return LoadedModel(model, processor, name)


def load_weights(source: str, device: str) -> Any:
    """Load a model without its processor, from a folder or the Hugging Face hub."""
    return _load(source, device)[0]


def _load(source: str, device: str, revision: str | None = None) -> tuple[Any, dict[str, Any]]:
    """Load a model. Return it with the ``from_pretrained`` options for its other parts."""
    check_name(source)  # before the imports, which take seconds
    import torch

    on = pick_device(device)
    transformers, _, options = _configured(source, revision)
    # bfloat16 is slow on most CPUs.
    dtype: Any = torch.float32 if torch.device(on).type == "cpu" else "auto"
    with _loading(source):
        loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=dtype,
            # Mismatches are reported below; the error of transformers would only refer to a log.
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
        if missing:  # transformers initialises them at random
            raise ValueError(
                f"its weights lack {len(missing)} of the model's parameters, such as {missing[0]}"
            )
        return model.eval().to(on), options


def _configured(source: str, revision: str | None = None) -> tuple[Any, Any, dict[str, Any]]:
    """Return transformers, a model's config and the ``from_pretrained`` options for its parts."""
    from clasp_kernels.models import supported_model_types
    from clasp_kernels.models.compat import require_transformers

    require_transformers(warn=False)
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    checkpoint = find_checkpoint(source)
    # With trust_remote_code unset, transformers would prompt the user for checkpoints with code.
    options: dict[str, Any] = {
        "local_files_only": checkpoint.local_only,
        "trust_remote_code": False,
    }
    if revision is not None:
        options["revision"] = revision
    with _loading(source):
        config = transformers.AutoConfig.from_pretrained(source, **options)
    if config.model_type not in supported_model_types():
        raise CommandError(
            f"--model {source} cannot be pruned: its model_type must be "
            f"{' or '.join(map(repr, supported_model_types()))}, got {config.model_type!r}"
        )
    return transformers, config, options


@contextmanager
def _loading(source: str) -> Iterator[None]:
    """Turn any loading error into a CommandError. A damaged folder may fail in any library."""
    with (
        refusing_as(f"--model {source} cannot be loaded as an image-text model"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def load_profile(path: str | Path) -> Profile:
    """Load a profile from a file."""
    check_readable("--profile", str(path))
    try:
        return Profile.load(path)
    except OSError as error:
        raise CommandError(f"--profile: {path}: {in_one_line(error)}") from None
    except (ValueError, RecursionError) as error:
        raise CommandError(f"--profile: {in_one_line(error)}") from None
