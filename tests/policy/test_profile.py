"""Profiles: what the bundled ones say, what files may say, and every refusal."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clasp_kernels.policy import CATEGORIES, CategoryPolicy, Profile, Router

FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "qwen2_vl", "video_llava")


def make(**changes):
    """A valid profile's JSON, with changes."""
    data = {
        "format": 1,
        "name": "test",
        "model_type": "llava",
        "layers": [-4, -2],
        "source": "made up",
        "categories": {
            "ocr": {"layer_weights": [0.25, 0.75], "pivot_ratio": 0.7, "budget_scale": 1.5},
            "general": {"layer_weights": "E", "pivot_ratio": 0.5},
        },
    }
    return {**data, **changes}


def with_general(**changes):
    policy = {"layer_weights": [0, 1], "pivot_ratio": 0.5, **changes}
    return make(categories={"general": {k: v for k, v in policy.items() if v != "absent"}})


@pytest.mark.parametrize("family", FAMILIES)
def test_bundled_profiles_cover_every_category_and_say_where_values_come_from(family):
    profile = Profile.for_model_type(family)
    assert profile.model_type == family
    assert set(profile.category_names) == set(CATEGORIES)
    assert "not the CLASP paper's values" in profile.source
    assert "not calibrated on this model" in profile.source
    for policy in profile.categories.values():
        assert sum(policy.layer_weights) == pytest.approx(1.0)
        # The projector (or merger) was trained on the deepest of the fused layers.
        assert policy.layer_weights[-1] == max(policy.layer_weights)


def test_an_unknown_family_lists_the_known():
    with pytest.raises(ValueError, match=rf"'gpt2'; there is one for: {', '.join(FAMILIES)};"):
        Profile.for_model_type("gpt2")


def test_reading_a_profile():
    profile = Profile.from_dict(make())
    assert profile.layers == (-4, -2)
    assert profile.category_names == ("ocr", "general")
    assert profile.weights_matrix() == [[0.25, 0.75], [0.0, 1.0]]
    assert [profile.category_id(name) for name in profile.category_names] == [0, 1]
    assert profile.categories["general"] == CategoryPolicy((0.0, 1.0), 0.5, 1.0)
    assert profile.salience_layer is None
    assert profile.normalize is None


@pytest.mark.parametrize(
    ("budget", "pivots"), [(1, 1), (2, 1), (5, 4), (10, 7), (16, 11), (64, 45), (576, 403)]
)
def test_pivot_count_rounds_the_ratio(budget, pivots):
    assert Profile.from_dict(make()).pivot_count("ocr", budget) == pivots


@pytest.mark.parametrize(("budget", "kept"), [(1, 2), (3, 5), (16, 24), (64, 96)])
def test_budget_scale_stretches_the_budget(budget, kept):
    profile = Profile.from_dict(make())
    assert profile.budget("ocr", budget) == kept
    assert profile.budget("general", budget) == budget


@given(
    ratio=st.floats(0, 1),
    scale=st.floats(1e-6, 8),
    budget=st.integers(1, 4096),
)
def test_counts_stay_in_range(ratio, scale, budget):
    profile = Profile.from_dict(with_general(pivot_ratio=ratio, budget_scale=scale))
    kept = profile.budget("general", budget)
    assert kept >= 1
    assert abs(kept - scale * budget) <= 1
    pivots = profile.pivot_count("general", kept)
    assert 1 <= pivots <= kept
    assert pivots == 1 or abs(pivots - ratio * kept) <= 0.5 + 1e-9


weights = st.floats(0, 1e3, allow_nan=False)


@given(
    layers=st.sets(st.integers(-40, -1), min_size=1, max_size=6).map(sorted),
    salience_layer=st.none() | st.integers(-40, -1),
    normalize=st.sampled_from([None, "l2", "rms"]),
    data=st.data(),
)
def test_every_valid_profile_survives_a_json_round_trip(layers, salience_layer, normalize, data):
    row = st.lists(weights, min_size=len(layers), max_size=len(layers)).filter(any)
    policy = st.builds(
        lambda w, ratio, scale: {"layer_weights": w, "pivot_ratio": ratio, "budget_scale": scale},
        row | st.sampled_from("ABCDE"),
        st.floats(0, 1),
        st.floats(1e-3, 10),
    )
    names = data.draw(st.sets(st.text(min_size=1, max_size=8), max_size=3)) | {"general"}
    categories = {name: data.draw(policy) for name in sorted(names)}
    profile = Profile.from_dict(
        make(
            layers=layers,
            salience_layer=salience_layer,
            normalize=normalize,
            categories=categories,
        )
    )
    again = Profile.from_dict(json.loads(json.dumps(profile.to_dict())))
    assert again == profile
    assert again.category_names == profile.category_names


def test_save_and_load(tmp_path):
    profile = Profile.from_dict(make(name="näme", salience_layer=-3, normalize="rms"))
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile


def test_a_profile_does_not_change_with_what_it_was_made_from():
    categories = {"general": CategoryPolicy((1.0,), 0.5)}
    profile = Profile("n", "llava", (-1,), "s", categories)
    categories.clear()
    assert profile.category_names == ("general",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "a profile must be a JSON object, got list"),
        ({"format": 1}, "missing field.s. 'name', 'model_type', 'layers', 'source', 'categories'"),
        (make(layer=[1]), "profile has unknown field.s. 'layer'; allowed: format, name, "),
        (make(format=2), "format must be 1, the version this package reads, got 2"),
        (make(format=1.0), "format must be 1, .* got 1.0"),
        (make(name=""), "name must be a non-empty string, got ''"),
        (make(model_type=3), "model_type must be a non-empty string, got 3"),
        (make(source=" "), "source must be a non-empty string, got ' '"),
        (make(layers=[]), r"layers must be a non-empty list of negative .* got \[\]"),
        (make(layers=-2), "layers must be .* got -2"),
        (make(layers="-2"), "layers must be .* got '-2'"),
        (make(layers=[-2, 0]), r"layers must be .* got \[-2, 0\]"),
        (make(layers=[-2, -1.0]), r"layers must be .* got \[-2, -1.0\]"),
        (make(layers=[-2, -4]), r"layers must be .* from shallow to deep, got \[-2, -4\]"),
        (make(layers=[-2, -2]), r"layers must be .* each once.* got \[-2, -2\]"),
        (make(salience_layer=0), "salience_layer must be null or a negative .* got 0"),
        (make(salience_layer=-1.5), "salience_layer must be null or a negative .* got -1.5"),
        (make(normalize="max"), "normalize must be null, .* got 'max'"),
        (make(categories=[]), "categories must be a JSON object, got list"),
        (make(categories={}), "categories must contain 'general', .* it has: nothing"),
        (
            make(categories={"ocr": {"layer_weights": "A", "pivot_ratio": 1}}),
            "categories must contain 'general', .* it has: ocr",
        ),
        (make(categories={"general": 3}), "categories.general must be a JSON object, got int"),
        (with_general(pivots=1), "categories.general has unknown field.s. 'pivots'; allowed: lay"),
        (with_general(layer_weights="absent"), "categories.general is missing field 'layer_w"),
        (with_general(pivot_ratio="absent"), "categories.general is missing field 'pivot_ratio'"),
        (with_general(layer_weights="F"), "layer_weights must be a list of 2 numbers or a .* 'F'"),
        (with_general(layer_weights=[1]), r"one number per fused layer, 2 for .* got \[1\]"),
        (with_general(layer_weights=7), "one number per fused layer, 2 for .* got 7"),
        (with_general(layer_weights=[1, None]), r"layer_weights\[1\] must be a finite .* got None"),
        (with_general(layer_weights=[1, math.nan]), r"layer_weights\[1\] must be .* got nan"),
        (with_general(layer_weights=[1, True]), r"layer_weights\[1\] must be .* got True"),
        (with_general(layer_weights=[2, -1]), r"numbers >= 0, at least one above 0, got \[2, -1\]"),
        (with_general(layer_weights=[0, 0]), r"numbers >= 0, at least one above 0, got \[0, 0\]"),
        (with_general(pivot_ratio=1.2), "general.pivot_ratio must be a number in 0..1, got 1.2"),
        (with_general(pivot_ratio="half"), "pivot_ratio must be a number in 0..1, got 'half'"),
        (with_general(budget_scale=0), "budget_scale must be a number above 0, got 0.0"),
        (with_general(budget_scale=math.inf), "budget_scale must be a number above 0, got inf"),
    ],
)
def test_a_bad_profile_names_the_field(data, message):
    with pytest.raises(ValueError, match=message):
        Profile.from_dict(data)


def test_categories_must_hold_policies():
    with pytest.raises(ValueError, match=r"categories.general must be a CategoryPolicy, got dict"):
        Profile("n", "llava", (-1,), "s", {"general": {}})


def test_a_bad_file_is_named(tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(make(format=9)))
    with pytest.raises(ValueError, match=r"profile\.json: format must be 1"):
        Profile.load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"profile\.json is not valid JSON: .* line 1, column 2"):
        Profile.load(path)


@pytest.mark.parametrize("budget", [0, -3, 1.5, True, "8"])
def test_a_bad_budget_is_named(budget):
    profile = Profile.from_dict(make())
    for ask in (profile.budget, profile.pivot_count):
        with pytest.raises(ValueError, match="budget must be an integer of at least 1, got"):
            ask("ocr", budget)


def test_an_unknown_category_lists_the_known():
    profile = Profile.from_dict(make())
    for ask in (profile.category_id, lambda c: profile.budget(c, 8)):
        with pytest.raises(ValueError, match=r"unknown category 'maps'; .* has: ocr, general"):
            ask("maps")


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "latin.json"
    path.write_bytes('{"name": "caf\u00e9"}'.encode("latin-1"))
    for kind in (Profile, Router):
        with pytest.raises(ValueError, match=r"latin\.json is not UTF-8 text: .* at byte 13"):
            kind.load(path)
