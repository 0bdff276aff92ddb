"""The plugin's settings, which the environment of the server holds."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clasp_kernels._version import __version__
from clasp_kernels.integrations.vllm.packed_tower import PackedTowerAdapter
from clasp_kernels.integrations.vllm.tower import TowerAdapter
from clasp_kernels.models.adapter import Adapter
from clasp_kernels.models.apply import check_budget, default_profile
from clasp_kernels.models.selection import TokenSelector, rules_of
from clasp_kernels.policy import Profile, Schedule

#: Visual tokens kept of each image, or the fraction of them. The plugin is on if it is set.
BUDGET = "CLASP_KERNELS_VLLM_BUDGET"
#: The name of a selection rule.
RULE = "CLASP_KERNELS_VLLM_RULE"
#: The path of a profile, on every machine of the server.
PROFILE = "CLASP_KERNELS_VLLM_PROFILE"

_ADAPTERS: dict[str, Callable[[Any, Profile, str], Adapter]] = {  # by config.model_type
    "llava": TowerAdapter,
    "qwen2_5_vl": PackedTowerAdapter,
}


@dataclass(frozen=True)
class Settings:
    """What ``apply_clasp`` would be given."""

    budget: int | float
    rule: str | None = None
    profile: str | None = None

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Settings | None:
        """Return the settings, None if the plugin is off.

        Raises:
            ValueError: a value is invalid; the message names the variable.

        >>> Settings.read({"CLASP_KERNELS_VLLM_BUDGET": "0.25"})
        Settings(budget=0.25, rule=None, profile=None)
        """
        budget = environment.get(BUDGET)
        if not budget:
            on = [name for name in (RULE, PROFILE) if environment.get(name)]
            if on:
                raise ValueError(f"{on[0]} is set, but {BUDGET} is not, so nothing is pruned")
            return None
        return cls(_budget(budget), environment.get(RULE) or None, environment.get(PROFILE) or None)

    def selector(self, config: Any, name: str) -> TokenSelector:
        """Return the selector of the model with this config, loaded from the folder ``name``.

        Raises:
            ValueError: settings and model do not fit.
        """
        if self.profile is None:
            profile = default_profile(name, config.model_type)
        else:
            profile = _load(self.profile)
        if profile.model_type != config.model_type:
            raise ValueError(
                f"{PROFILE} must name a profile for {config.model_type!r} models, but "
                f"{profile.name!r} is for {profile.model_type!r}"
            )
        try:
            rules = rules_of(profile, self.rule)
        except ValueError as error:
            raise ValueError(f"{RULE} or the profile names a rule: {error}") from None
        wanting = [rule.name for rule in rules.values() if rule is not None and rule.uses_relevance]
        if wanting:
            raise ValueError(
                f"rule {wanting[0]!r} compares images with the text of the prompt, which vLLM does "
                f"not hand to the part of a model that encodes images: choose another {RULE}, or "
                f"encode outside the server with PrunedEncoder"
            )
        fuse_into = profile.fuse_into or "projector"
        return TokenSelector(
            adapter=_ADAPTERS[config.model_type](config, profile, fuse_into),
            profile=profile,
            schedule=Schedule.input(self.budget),
            fuse_into=fuse_into,
            merge=False,
            salience_rows="last",
            completion_on="hidden",
            rules=rules,
        )

    def fingerprint(self, profile: Profile) -> str:
        """Return a text that differs whenever other tokens may be kept of the same image for the
        same category, so that caches which servers share do not mix them up. Of a rule that another
        package has registered, the file that defines it counts."""
        content = json.dumps([self.budget, self.rule, profile.to_dict(), __version__])
        digest = hashlib.sha256(content.encode())
        for rule in rules_of(profile, self.rule).values():
            if rule is None:
                continue
            code = rule.function if inspect.isfunction(rule.function) else type(rule.function)
            if not code.__module__.startswith("clasp_kernels."):
                digest.update(Path(inspect.getfile(code)).read_bytes())
        return digest.hexdigest()[:16]


def _load(path: str) -> Profile:
    try:
        return Profile.load(path)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{PROFILE} must be the path of a profile that every process of the server can read, "
            f"got {path!r} ({error})"
        ) from None


def _budget(text: str) -> int | float:
    try:
        given = int(text) if text.strip().isdigit() else float(text)
        checked = check_budget(given)
    except ValueError as error:
        raise ValueError(
            f"{BUDGET} must be the number of visual tokens kept per image, like 64, or the "
            f"fraction of them, like 0.25, got {text!r} ({error})"
        ) from None
    assert checked is not None
    return checked
