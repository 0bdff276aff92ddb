"""The plugin for vLLM, with a stand-in for vLLM. ``test_vllm_server.py`` has the real server."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_llava import images, prompts, tiny_llava, tiny_profile
from torch import nn

from clasp_kernels.integrations.vllm import plugin
from clasp_kernels.integrations.vllm.hooks import check_overrides
from clasp_kernels.integrations.vllm.settings import BUDGET, PROFILE, RULE, Settings
from clasp_kernels.models import apply_clasp
from clasp_kernels.models.specimens import IMAGE_TOKEN, tiny_qwen2_5_vl
from clasp_kernels.policy import CategoryPolicy, Profile

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


class Projections(nn.Module):
    """vLLM's one projection to query, key and value, of the three of transformers."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.parts = nn.ModuleList([attention.q_proj, attention.k_proj, attention.v_proj])

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.cat([part(hidden_states) for part in self.parts], dim=-1), None


class ServedModel:
    """Stands for vLLM's LLaVA: what the plugin uses of it, with the weights of a model of
    transformers. Like vLLM, it has no layers deeper than the one that the projector takes."""

    def __init__(self, model: Any, devices: int = 1) -> None:
        tower = model.model.vision_tower
        layers = tower.encoder.layers[: len(tower.encoder.layers) + 1 - 2]
        self.multi_modal_projector = model.model.multi_modal_projector
        for layer in layers:
            layer.vllm = SimpleNamespace(
                layer_norm1=layer.layer_norm1,
                self_attn=SimpleNamespace(
                    qkv_proj=Projections(layer.self_attn),
                    num_heads=layer.self_attn.num_heads,
                    head_dim=layer.self_attn.head_dim,
                    scale=layer.self_attn.scale,
                    tp_size=devices,
                ),
            )

        def encoder(inputs_embeds: torch.Tensor, return_all_hidden_states: bool) -> Any:
            assert return_all_hidden_states
            states = [inputs_embeds]
            for layer in layers:
                output = layer(states[-1], attention_mask=None)
                states.append(output[0] if isinstance(output, tuple) else output)
            return states

        encoder.layers = [layer.vllm for layer in layers]  # type: ignore[attr-defined]
        self.vision_tower = SimpleNamespace(
            vision_model=SimpleNamespace(
                embeddings=tower.embeddings, pre_layrnorm=tower.pre_layrnorm, encoder=encoder
            )
        )


class ServedAttention(nn.Module):
    """Stands for the attention function of vLLM's vision tower, which modules call by name."""

    scale = 8**-0.5

    def forward(self, *, query: torch.Tensor, key: torch.Tensor) -> None: ...


class ServedQwen:
    """Stands for vLLM's Qwen2.5-VL, with the weights of a model of transformers."""

    def __init__(self, model: Any, devices: int = 1) -> None:
        self.config, self.visual, tower = model.config, self, model.model.visual
        self.merger, self.tp_size, self._tower = tower.merger, devices, tower
        self.blocks = []
        for block in tower.blocks:
            attention = ServedAttention()
            block.attn.register_forward_pre_hook(partial(self._call, attention), with_kwargs=True)
            self.blocks.append(
                SimpleNamespace(norm1=block.norm1, attn=SimpleNamespace(attn=attention))
            )

    def __call__(self, pixels: torch.Tensor, grid_thw: list[list[int]]) -> torch.Tensor:
        output: torch.Tensor = self._tower(
            pixels, grid_thw=torch.tensor(grid_thw), return_dict=True
        ).pooler_output
        return output

    def _call(self, inner: Any, attention: Any, given: tuple[Any, ...], named: Any) -> None:
        hidden = given[0] if given else named["hidden_states"]
        query, key, _ = attention.qkv(hidden).unflatten(-1, (3, 4, 8)).unbind(1)
        cos, sin = (part.unsqueeze(-2) for part in named["position_embeddings"])
        query, key = (
            each * cos + torch.cat([-each[..., 4:], each[..., :4]], dim=-1) * sin
            for each in (query, key)
        )
        inner(query=query[None], key=key[None])


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture
def profile(tmp_path: Path) -> str:
    path = tmp_path / "profile.json"
    tiny_profile().save(path)
    return str(path)


@pytest.mark.parametrize("rule", [None, "divprune", "cenprune", "pool"])
def test_the_server_keeps_what_a_patched_model_keeps(profile: str, rule: str | None) -> None:
    model = tiny_llava()
    settings = {"budget": 12, "profile": Profile.load(profile), "rule": rule}
    names = ["ocr", "spatial", "counting"]
    given = {**prompts(*[[5, "image", 6]] * 3), "pixel_values": images(3)}
    with apply_clasp(model, **settings) as handle:
        wanted = handle.encode(names, **given)

    selector = Settings(12, rule, profile).selector(model.config, "")
    served = ServedModel(tiny_llava())
    selector.adapter.check_tower(served)
    kept = selector.select(served, {"pixel_values": given["pixel_values"]}, names, lambda: None)
    assert kept.counts == (12, 6, 12)
    for number, image in enumerate(wanted):
        count = kept.counts[number]
        assert torch.equal(kept.indices[number, :count], image.indices)
        torch.testing.assert_close(
            kept.features[number, :count], image.features, atol=1e-5, rtol=0.0
        )


@pytest.mark.parametrize("rule", [None, "divprune", "cenprune", "pool"])
def test_the_server_keeps_what_a_patched_qwen_keeps(tmp_path: Path, rule: str | None) -> None:
    path = tmp_path / "profile.json"
    Profile(
        name="tiny",
        model_type="qwen2_5_vl",
        layers=(0.0, 0.5, 1.0),
        source="a test",
        fuse_into="selection",
        categories={
            "general": CategoryPolicy((0.2, 0.3, 0.5), 0.5),
            "ocr": CategoryPolicy((0.4, 0.3, 0.3), 1.0, budget_scale=2.0),
        },
    ).save(path)
    grid = torch.tensor([(1, 8, 12), (1, 12, 8), (1, 2, 4)])  # the last is below the budget
    names = ["general", "ocr", "general"]
    patches = torch.randn(int(grid.prod(1).sum()), 96, generator=torch.Generator().manual_seed(0))
    tokens = [62, *[IMAGE_TOKEN] * 24, 63]
    ids = torch.tensor([tokens, tokens, [0] * 22 + [62, IMAGE_TOKEN, IMAGE_TOKEN, 63]])
    pictures = {"pixel_values": patches, "image_grid_thw": grid}
    model = tiny_qwen2_5_vl()
    with apply_clasp(model, budget=5, profile=Profile.load(path), rule=rule) as handle:
        wanted = handle.encode(
            names,
            input_ids=ids,
            attention_mask=(ids != 0).int(),
            mm_token_type_ids=(ids == IMAGE_TOKEN).int(),
            **pictures,
        )

    selector = Settings(5, rule, str(path)).selector(model.config, "")
    served = ServedQwen(tiny_qwen2_5_vl())
    selector.adapter.check_tower(served)
    kept = selector.select(served, pictures, names, lambda: None)
    assert kept.counts == (5, 10, 2)
    for number, image in enumerate(wanted):
        count = kept.counts[number]
        assert torch.equal(kept.indices[number, :count], image.indices)
        torch.testing.assert_close(
            kept.features[number, :count], image.features, atol=1e-5, rtol=0.0
        )


def test_layers_that_the_server_does_not_build_are_refused(tmp_path: Path) -> None:
    tiny_profile(layers=(-3, -2, -1)).save(tmp_path / "clasp_profile.json")
    selector = Settings(12).selector(tiny_llava().config, str(tmp_path))
    with pytest.raises(ValueError, match=r"reads the output of vision layer 5, but .* only the 4"):
        selector.adapter.check_tower(ServedModel(tiny_llava()))


def test_a_split_tower_is_refused(profile: str) -> None:
    selector = Settings(12, None, profile).selector(tiny_llava().config, "")
    with pytest.raises(ValueError, match=r"split over 2 devices.*--mm-encoder-tp-mode data"):
        selector.adapter.check_tower(ServedModel(tiny_llava(), devices=2))
    model = tiny_qwen2_5_vl()
    selector = Settings(12).selector(model.config, "")
    with pytest.raises(ValueError, match=r"split over 2 devices.*--mm-encoder-tp-mode data"):
        selector.adapter.check_tower(ServedQwen(model, devices=2))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({BUDGET: ""}, None),
        ({BUDGET: "64"}, Settings(64)),
        ({BUDGET: "0.25", RULE: "divprune"}, Settings(0.25, "divprune")),
        ({BUDGET: "1.0", PROFILE: "p.json"}, Settings(1.0, None, "p.json")),
    ],
)
def test_settings_are_read_from_the_environment(environment: Any, expected: Any) -> None:
    read = Settings.read(environment)
    assert read == expected
    assert read is None or type(read.budget) is type(expected.budget)


@pytest.mark.parametrize("budget", ["0", "1.5", "-3", "many", "nan"])
def test_a_bad_budget_names_the_variable(budget: str) -> None:
    with pytest.raises(ValueError, match=f"{BUDGET} must be .* got '{budget}'"):
        Settings.read({BUDGET: budget})


def test_a_rule_without_a_budget_is_an_error() -> None:
    with pytest.raises(ValueError, match=f"{RULE} is set, but {BUDGET} is not"):
        Settings.read({RULE: "divprune"})


def test_a_setting_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    config = tiny_llava().config
    with pytest.raises(ValueError, match=f"{RULE} or the profile names a rule: .*'best'"):
        Settings(12, "best").selector(config, "")
    absent = str(tmp_path / "absent.json")
    with pytest.raises(ValueError, match=f"{PROFILE} must be the path .* got '{absent}'"):
        Settings(12, None, absent).selector(config, "")
    with pytest.raises(ValueError, match=f"'cdpruner' compares .* choose another {RULE}"):
        Settings(12, "cdpruner").selector(config, "")
    Profile.for_model_type("qwen2_5_vl").save(tmp_path / "qwen.json")
    with pytest.raises(ValueError, match=f"{PROFILE} must name a profile for 'llava' models"):
        Settings(12, None, str(tmp_path / "qwen.json")).selector(config, "")
    config.vision_feature_layer = [-3, -2]
    with pytest.raises(ValueError, match="vision_feature_layer must be one layer"):
        Settings(12).selector(config, "")


def test_the_profile_in_the_folder_of_the_weights_is_the_default(tmp_path: Path) -> None:
    config = tiny_llava().config
    assert Settings(12).selector(config, "absent").profile == Profile.for_model_type("llava")
    tiny_profile().save(tmp_path / "clasp_profile.json")
    assert Settings(12).selector(config, str(tmp_path)).profile == tiny_profile()


def test_servers_that_keep_other_tokens_have_other_fingerprints() -> None:
    usual = tiny_profile()
    prints = [
        Settings(12).fingerprint(usual),
        Settings(13).fingerprint(usual),
        Settings(12, "divprune").fingerprint(usual),
        Settings(12).fingerprint(tiny_profile(layers=(-3, -2, -1))),
    ]
    assert len(set(prints)) == len(prints)
    assert Settings(12).fingerprint(tiny_profile()) == prints[0]


def test_another_release_of_a_rules_package_has_another_fingerprint(
    tmp_path: Path, monkeypatch: Any, own_rules: None
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "somebodys_rule.py"
    file.write_text(
        "from clasp_kernels.rules import find_rule, register_rule\n"
        "@register_rule('somebodys')\n"
        "def somebodys(features, salience, budget, *, valid=None):\n"
        "    return find_rule('attention')(features, salience, budget, valid=valid)\n"
    )
    importlib.import_module("somebodys_rule")
    before = Settings(12, "somebodys").fingerprint(tiny_profile())
    assert before == Settings(12, "somebodys").fingerprint(tiny_profile())
    file.write_text(file.read_text().replace("attention", "divprune"))
    assert before != Settings(12, "somebodys").fingerprint(tiny_profile())
    monkeypatch.delitem(sys.modules, "somebodys_rule")


def test_the_plugin_is_off_without_a_budget(monkeypatch: Any) -> None:
    monkeypatch.delenv(BUDGET, raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it would fail
    plugin.register()


def test_the_plugin_registers_classes_that_are_there(monkeypatch: Any) -> None:
    registered: dict[str, str] = {}
    pruned = ["LlavaForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"]
    refused = "LlavaNextForConditionalGeneration"
    registry = SimpleNamespace(
        register_model=registered.__setitem__,
        get_supported_archs=lambda: ["LlamaForCausalLM", refused, *pruned],
    )
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry))
    monkeypatch.setenv(BUDGET, "64")
    plugin.register()
    assert registered.keys() == {refused, *pruned}
    module, _, name = registered[refused].partition(":")
    with pytest.raises(ValueError, match=f"{BUDGET} is set, but .* served unpruned"):
        getattr(importlib.import_module(module), name)
    for architecture in pruned:
        module, _, name = registered[architecture].partition(":")
        source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text()
        classes = [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
        assert name in classes


def test_a_wrong_setting_stops_the_server(monkeypatch: Any) -> None:
    monkeypatch.setenv(BUDGET, "none")
    with pytest.raises(ValueError, match=BUDGET):
        plugin.register()


def test_where_it_is_off_the_plugin_imports_nothing_heavy() -> None:
    # The tests' environment of vLLM imports torch whenever Python starts.
    script = (
        "import sys; before = set(sys.modules); "
        "from clasp_kernels.integrations.vllm.plugin import register; register(); "
        "print(*sorted({'torch', 'transformers', 'PIL'} & (sys.modules.keys() - before)))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CLASP_KERNELS_VLLM_")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""


class Base:
    def apply(self, inputs: Any, timing_ctx: Any) -> None: ...


class Overriding(Base):
    def apply(self, inputs: Any, timing_ctx: Any) -> None: ...

    def renamed(self) -> None: ...


def test_a_hook_that_vllm_has_renamed_or_changed_is_named() -> None:
    check_overrides(Overriding, Base, ["apply"])
    with pytest.raises(ImportError, match=r"Base.renamed must take self, but is not there"):
        check_overrides(Overriding, Base, ["renamed"])
    other = type("Other", (), {"apply": lambda self, request: None})
    with pytest.raises(
        ImportError,
        match=r"Other.apply must take self, inputs, timing_ctx, but takes self, request",
    ):
        check_overrides(Overriding, other, ["apply"])


def test_the_entry_point_leads_to_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [target] = project["entry-points"]["vllm.general_plugins"].values()
    module, _, name = target.partition(":")
    assert getattr(importlib.import_module(module), name) is plugin.register
