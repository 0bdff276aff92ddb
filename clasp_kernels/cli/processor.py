"""Load a checkpoint's processor, without its video part if videos cannot be processed."""

from __future__ import annotations

from typing import Any


def load_processor(source: str, **options: Any) -> Any:
    """Load what ``AutoProcessor`` loads, without the video processor if torchvision is missing.

    Without torchvision, transformers refuses every processor that has a video part, even though
    images do not need torchvision.
    """
    import transformers
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.utils.import_utils import is_torchvision_available

    config = transformers.AutoConfig.from_pretrained(source, **options)
    known: Any = transformers.PROCESSOR_MAPPING
    kind = known.get(type(config), None)
    if kind is None or _VIDEOS not in kind.get_attributes() or is_torchvision_available():
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
