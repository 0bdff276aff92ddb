"""The handle that ``apply_clasp`` returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from clasp_kernels._warn import warn_caller
from clasp_kernels.models.adapter import Adapter, VisionOutput
from clasp_kernels.models.encoded import EncodedImage
from clasp_kernels.models.guards import guard_images
from clasp_kernels.models.patching import MethodPatches
from clasp_kernels.models.records import PrefillRecord
from clasp_kernels.models.runtime import ClaspRuntime
from clasp_kernels.models.selection import Choice, TokenSelector
from clasp_kernels.policy import Profile, Schedule


class ClaspHandle:
    """Handle of a patched model. As a context manager it calls ``remove()`` on exit."""

    def __init__(self, model: Any, runtime: ClaspRuntime, profile: Profile) -> None:
        """Patch the model."""
        self.model = model
        self.profile = profile
        self._runtime = runtime
        self._patches = MethodPatches(
            model,
            runtime.methods,
            runtime.signatures,
            [
                *runtime.adapter.patches(),
                *([] if runtime.seam is None else runtime.seam.numbers(model)),
            ],
            _parts(model, runtime),
            runtime.check_idle,
        )

    @property
    def last(self) -> PrefillRecord | None:
        """The record of the last prefill with images, or None before the first."""
        return self._runtime.last

    @property
    def adapter(self) -> Adapter:
        """The adapter of the model family. It knows which images and videos the inputs hold, and
        where the visual tokens are in them."""
        return self._runtime.adapter

    @property
    def selector(self) -> TokenSelector:
        """The selector of this model's tokens. It has the settings of the ``apply_clasp`` call."""
        return self._runtime.selector

    def watched(self, watch: Callable[[Choice], None]) -> AbstractContextManager[None]:
        """Return a context manager in which ``watch`` is called after every selection, with its
        features and scores. Meant for looking at a few prompts: features are kept as long as
        ``watch`` keeps them."""
        return self._runtime.selecting(watch=watch)

    def on_encoded(
        self, vision: VisionOutput, schedule: Schedule | None = None
    ) -> AbstractContextManager[None]:
        """Return a context manager in which prompts take ``vision`` for the output of the vision
        tower, and keep as many tokens as ``schedule`` says. None keeps the model's own schedule.

        It answers about the same images many times: after one ``adapter.encode``, no prompt costs
        the vision tower. The images that prompts are given must be those of ``vision``.

        Raises:
            ValueError: ``schedule`` drops tokens after other layers than the model's own, which
                ``apply_clasp`` was given, or does not fit the model.
        """
        if schedule is None:
            return self._runtime.selecting(encoded=vision)
        own = self.selector.schedule
        if schedule.layers != own.layers:
            raise ValueError(
                f"schedule must drop tokens after the same decoder layers as {own!r}, which the "
                f"model was patched for, got {schedule!r}"
            )
        adapter = self.adapter
        schedule.check_fits(adapter.tokens_per_image(), adapter.text_config.num_hidden_layers)
        return self._runtime.selecting(encoded=vision, schedule=schedule)

    def encode(
        self, categories: str | Sequence[str] | None = None, **inputs: Any
    ) -> list[EncodedImage]:
        """Encode the images of prompts and prune them, without running the decoder.

        An engine that takes encoded images can then do the rest
        (``clasp_kernels.integrations.vllm``). Nothing is recorded in ``last``.

        Args:
            categories: one name or one per prompt; the default asks the router.
            inputs: what the processor returns: ``input_ids``, ``pixel_values`` and so on.

        Returns:
            One for each image, then one for each video, in the order of the prompts.

        Raises:
            ValueError: tokens are dropped or added inside the decoder, or images and prompts do not
                match.
            RuntimeError: the handle was removed.
        """
        if not self._patches.installed:
            raise RuntimeError("the handle was removed, so it cannot encode; apply again")
        return self._runtime.encode(self.model, inputs, categories)

    def remove(self) -> None:
        """Restore the model's original methods. A second call does nothing.

        Wrappers that others have put around the methods since (mixed precision, device hooks)
        stay.

        Raises:
            RuntimeError: ``generate`` is running, here or in another thread, and would continue
                unpatched.
        """
        self._patches.remove(self.model)

    def __enter__(self) -> ClaspHandle:
        if not self._patches.installed:
            raise RuntimeError("the handle was removed, so nothing would be pruned; apply again")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.remove()
        except RuntimeError as busy:  # must not replace an exception raised in the block
            if error is None:
                raise
            warn_caller(f"the model stays patched: {busy}")


def _parts(model: Any, runtime: ClaspRuntime) -> Iterator[tuple[Any, MethodPatches]]:
    """Patch the inner modules one by one, and yield each with its patches."""
    adapter = runtime.adapter
    yield guard_images(adapter.inner_model(model), adapter.pixel_arguments)
    if runtime.seam is not None:
        yield from runtime.seam.parts(model)
