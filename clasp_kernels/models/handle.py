"""What ``apply_clasp`` gives back."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any

from clasp_kernels._warn import warn_caller
from clasp_kernels.models.adapter import Adapter
from clasp_kernels.models.guards import guard_images
from clasp_kernels.models.patching import MethodPatches
from clasp_kernels.models.records import PrefillRecord
from clasp_kernels.models.runtime import ClaspRuntime
from clasp_kernels.policy import Profile


class ClaspHandle:
    """Holds a model that prunes. As a context manager it removes itself at the end."""

    def __init__(self, model: Any, runtime: ClaspRuntime, profile: Profile) -> None:
        """Patch the model. The handle owns the patches."""
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
        """The last prefill that had images, or None before the first."""
        return self._runtime.last

    @property
    def adapter(self) -> Adapter:
        """What is the model family's own: which images and videos inputs hold, and where in them
        visual tokens are."""
        return self._runtime.adapter

    def remove(self) -> None:
        """Give the model its own methods back; doing so again changes nothing.

        What others have wrapped around them since (mixed precision, device hooks) stays.

        Raises:
            RuntimeError: the model is generating in another thread, which would go on unpatched.
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
        except RuntimeError as busy:  # must not take the place of what went wrong in the block
            if error is None:
                raise
            warn_caller(f"the model stays patched: {busy}")


def _parts(model: Any, runtime: ClaspRuntime) -> Iterator[tuple[Any, MethodPatches]]:
    """Patch what is patched inside a model, one after the other."""
    adapter = runtime.adapter
    yield guard_images(adapter.inner_model(model), adapter.pixel_arguments)
    if runtime.seam is not None:
        yield from runtime.seam.parts(model)
