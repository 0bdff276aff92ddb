"""Load a checkpoint's processor, also where torchvision is missing: images do not need it."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from typing import Any


def load_processor(source: str, **options: Any) -> Any:
    """Load what ``AutoProcessor`` loads, without the video processor if torchvision is missing.

    Without torchvision, transformers refuses Pixtral's processor and every processor that has a
    video part, even though images do not need torchvision.
    """
    import transformers
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.utils.import_utils import is_torchvision_available

    config = transformers.AutoConfig.from_pretrained(source, **options)
    known: Any = transformers.PROCESSOR_MAPPING
    kind = known.get(type(config), None)
    if kind is None or is_torchvision_available():
        return transformers.AutoProcessor.from_pretrained(source, **options)
    if is_stand_in(kind):
        with suppress(ImportError):  # what is done with a stand-in says what is missing
            kind = with_pil_images(kind)
    elif _VIDEOS not in kind.get_attributes():
        return transformers.AutoProcessor.from_pretrained(source, **options)
    # Not transformers.AutoImageProcessor: in some releases that one requires torchvision.
    parts: dict[str, Any] = {
        "image_processor": AutoImageProcessor,
        "tokenizer": transformers.AutoTokenizer,
    }
    described, others = kind.get_processor_dict(source, **options)
    arguments = [
        None if name == _VIDEOS else parts[name].from_pretrained(source, **options)
        for name in kind.get_attributes()
    ]
    return without_videos(kind).from_args_and_dict(arguments, described, **others)


def is_stand_in(kind: type) -> bool:
    """Return whether transformers put a class in the place of one that it cannot import."""
    return bool(getattr(kind, "is_dummy", False))


def with_pil_images(kind: type) -> Any:
    """Return the processor class that ``kind`` stands for, with images processed by Pillow.

    The module of Pixtral's processor imports a function from that of the image processor that uses
    torchvision. The module of the one that uses Pillow has the same function, so it takes the
    other's place during the import.

    Raises:
        ImportError: the module needs something else that is missing.
    """
    package, _, module = kind.__module__.rpartition(".")
    family = module.removeprefix("processing_")
    wanted = f"{package}.image_processing_{family}"
    sys.modules[wanted] = import_module(f"{package}.image_processing_pil_{family}")
    try:
        return getattr(import_module(kind.__module__), kind.__name__)
    finally:
        del sys.modules[wanted]


def without_videos(kind: type) -> Any:
    """Return a subclass of a processor whose ``video_processor`` may be None, for images alone."""
    from transformers import ProcessorMixin

    def check_argument_for_proper_class(self: Any, name: str, argument: Any) -> Any:
        if name == _VIDEOS and argument is None:
            return None
        return getattr(kind, "check_argument_for_proper_class")(self, name, argument)  # noqa: B009

    overridden: dict[str, Any] = {
        "check_argument_for_proper_class": check_argument_for_proper_class
    }
    if "apply_chat_template" in vars(kind):  # SmolVLM's asks it how many frames a video has
        overridden["apply_chat_template"] = ProcessorMixin.apply_chat_template
    return type(kind.__name__, (kind,), overridden)


_VIDEOS = "video_processor"
