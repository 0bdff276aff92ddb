"""Profiles: the bundled ones, valid files, and every error."""

import dataclasses
import json
import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clasp_kernels.policy import CATEGORIES, CategoryPolicy, Profile, Router, TowerLayers

CLIP, QWEN = (24, (-8, -6, -4, -2)), (32, (-7, -5, -3, -1))
QWEN3 = (27, (-7, -5, -3, -1))
GEMMA3 = (27, (-7, -5, -3, -1))
ONEVISION = (26, (-7, -5, -3, -1))
INTERN = (24, (-7, -5, -3, -1))
# The vision tower that each bundled profile is for: its depth and its fused layers.
TOWERS = {
    "gemma3": GEMMA3,
    "idefics3": GEMMA3,
    "internvl": INTERN,
    "llava": CLIP,
    "llava_next": CLIP,
    "llava_onevision": ONEVISION,
    "mistral3": INTERN,
    "paligemma": GEMMA3,
    "qwen2_5_vl": QWEN,
    "qwen2_vl": QWEN,
    "qwen3_5": QWEN3,
    "qwen3_5_moe": QWEN3,
    "qwen3_vl": QWEN3,
    "qwen3_vl_moe": QWEN3,
    "smolvlm": GEMMA3,
    "video_llava": CLIP,
}
FAMILIES = tuple(TOWERS)


def make(**changes):
    """Return the JSON of a valid profile with changes."""
    data = {
        "format": 2,
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
    assert "nobody calibrated them on real weights" in profile.source
    assert profile.fuse_into == "selection"
    assert "gets what it was trained on" in profile.source
    for policy in profile.categories.values():
        assert sum(policy.layer_weights) == pytest.approx(1.0)
        # The projector (or merger) was trained on the deepest fused layer.
        assert policy.layer_weights[-1] == max(policy.layer_weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_bundled_profiles_fuse_the_layers_they_name_and_fit_every_other_tower(family):
    profile = Profile.for_model_type(family)
    depth, layers = TOWERS[family]
    named = profile.for_tower(depth)
    assert named.states == tuple(depth + 1 + layer for layer in layers)
    assert [list(row) for row in named.weights] == profile.weights_matrix()
    # Qwen2.5-VL's last block is one of the few with full attention.
    assert named.salience_layer == (31 if family == "qwen2_5_vl" else None)
    for num_layers in range(1, 130):
        fitted = profile.for_tower(num_layers)
        check_fits(fitted, num_layers)
        assert fitted.salience_layer == (num_layers - 1 if family == "qwen2_5_vl" else None)


def check_fits(fitted, num_layers):
    """Check that states are ascending within 0..num_layers, each with a column of weights."""
    assert list(fitted.states) == sorted(set(fitted.states))
    assert set(fitted.states) <= set(range(num_layers + 1))
    assert {len(row) for row in fitted.weights} == {len(fitted.states)}


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
    assert profile.fuse_into is None


def test_relative_depths_are_numbers():
    profile = Profile.from_dict(make(layers=[0, 1], salience_layer=1))
    assert profile.layers == (0.0, 1.0)
    assert {type(depth) for depth in (*profile.layers, profile.salience_layer)} == {float}


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


@pytest.mark.parametrize(
    ("tokens", "kept", "scaled"),
    [(0.25 * 145, 36, 54), (36.5, 37, 55), (1.5, 2, 2), (0.01, 1, 1), (16.0, 16, 24)],
)
def test_a_budget_may_be_a_fraction_of_an_images_tokens(tokens, kept, scaled):
    profile = Profile.from_dict(make())
    assert profile.budget("general", tokens) == kept
    assert profile.budget("ocr", tokens) == scaled


@given(
    ratio=st.floats(0, 1),
    scale=st.floats(1e-6, 8),
    budget=st.integers(1, 4096) | st.floats(1e-6, 4096),
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
indices = st.integers(-40, -1)
depths = st.floats(0, 1)
depths_above_0 = st.floats(0, 1, exclude_min=True)


def ascending(layer):
    return st.sets(layer, min_size=1, max_size=6).map(sorted)


@st.composite
def profiles(draw, layers):
    """Draw the JSON of a profile, in either format."""
    layers = draw(layers)
    row = st.lists(weights, min_size=len(layers), max_size=len(layers)).filter(any)
    policy = st.builds(
        lambda w, ratio, scale: {"layer_weights": w, "pivot_ratio": ratio, "budget_scale": scale},
        row | st.sampled_from("ABCDE"),
        st.floats(0, 1),
        st.floats(1e-3, 10),
    )
    names = draw(st.sets(st.text(min_size=1, max_size=8), max_size=3)) | {"general"}
    changes = {
        "layers": layers,
        "salience_layer": draw(st.none() | indices),
        "normalize": draw(st.sampled_from([None, "l2", "rms"])),
        "categories": {name: draw(policy) for name in sorted(names)},
    }
    if layers[0] < 0 and draw(st.booleans()):
        return make(**changes, format=1)
    changes["salience_layer"] = draw(st.none() | indices | depths_above_0)
    return make(**changes, fuse_into=draw(st.sampled_from([None, "projector", "selection"])))


@given(profiles(ascending(indices) | ascending(depths)))
def test_every_valid_profile_survives_a_json_round_trip(data):
    profile = Profile.from_dict(data)
    written = json.loads(json.dumps(profile.to_dict()))
    again = Profile.from_dict(written)
    assert again == profile
    assert again.category_names == profile.category_names
    for name in data.keys() - {"categories"}:
        assert written[name] == data[name], name
    # A reader of format 1 would refuse the field.
    assert ("fuse_into" in written) == (data["format"] == 2)


@given(profiles(ascending(depths)), st.integers(1, 200))
def test_relative_depths_fit_every_tower(data, num_layers):
    profile = Profile.from_dict({**data, "salience_layer": None})
    fitted = profile.for_tower(num_layers)
    check_fits(fitted, num_layers)
    # Every layer maps to the state nearest to its depth, with its weight.
    nearest = [math.floor(depth * num_layers + 0.5) for depth in profile.layers]
    assert set(fitted.states) == set(nearest)
    for name, row in zip(profile.category_names, fitted.weights, strict=True):
        expected = profile.categories[name].layer_weights
        assert sum(row) == pytest.approx(sum(expected))
        for state, weight in zip(fitted.states, row, strict=True):
            shared = [w for w, s in zip(expected, nearest, strict=True) if s == state]
            assert weight == pytest.approx(sum(shared))


@given(profiles(ascending(indices)), st.integers(40, 200))
def test_negative_indices_count_from_the_end(data, num_layers):
    profile = Profile.from_dict(data)
    fitted = profile.for_tower(num_layers)
    check_fits(fitted, num_layers)
    hidden_states, blocks = range(num_layers + 1), range(num_layers)
    assert fitted.states == tuple(hidden_states[layer] for layer in profile.layers)
    assert [list(row) for row in fitted.weights] == profile.weights_matrix()
    if isinstance(profile.salience_layer, int):
        assert fitted.salience_layer == blocks[profile.salience_layer]


@given(depths_above_0, st.integers(1, 200))
def test_relative_salience_is_the_layer_whose_output_stands_at_the_depth(depth, num_layers):
    fitted = Profile.from_dict(make(layers=[0, depth], salience_layer=depth)).for_tower(num_layers)
    assert fitted.salience_layer in range(num_layers)
    assert fitted.salience_layer == max(0, fitted.states[-1] - 1)


@pytest.mark.parametrize("num_layers", [1, 2, 5, 24, 27, 32, 129])
def test_depth_0_enters_the_first_layer_and_depth_1_leaves_the_last(num_layers):
    fitted = Profile.from_dict(make(layers=[0, 1], salience_layer=1)).for_tower(num_layers)
    assert fitted.states == (0, num_layers)
    assert fitted.salience_layer == num_layers - 1


def test_layers_that_meet_in_a_shallow_tower_are_read_once_with_their_weights_added():
    data = make(
        layers=[0.5, 0.75, 0.8, 1.0],
        salience_layer=0.1,
        categories={"general": {"layer_weights": [0.5, 0.25, 0.125, 0.125], "pivot_ratio": 0.5}},
    )
    profile = Profile.from_dict(data)
    assert profile.for_tower(4) == TowerLayers((2, 3, 4), ((0.5, 0.375, 0.125),), 0)
    assert profile.for_tower(2) == TowerLayers((1, 2), ((0.5, 0.5),), 0)
    assert profile.for_tower(1) == TowerLayers((1,), ((1.0,),), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [-6, -2]}, "profile 'test' fuses layer -6"),
        ({"salience_layer": -6}, "profile 'test' takes salience from layer -6"),
    ],
)
def test_a_negative_index_past_the_first_layer_is_refused(changes, message):
    profile = Profile.from_dict(make(**changes))
    allowed = ", but the vision tower has 5 layers: -5..-1 are allowed"
    with pytest.raises(ValueError) as refusal:
        profile.for_tower(5)
    assert str(refusal.value) == message + allowed
    profile.for_tower(6)


@pytest.mark.parametrize("num_layers", [0, -1, 2.0, True, None])
def test_a_tower_has_at_least_one_layer(num_layers):
    with pytest.raises(ValueError, match="num_layers must be an integer of at least 1, got"):
        Profile.from_dict(make()).for_tower(num_layers)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 1, "salience_layer": -3},
        {"salience_layer": -3},
        {"layers": [1 / 3, 1], "salience_layer": 2 / 3, "fuse_into": "projector"},
    ],
)
def test_save_and_load(tmp_path, changes):
    profile = Profile.from_dict(make(name="näme", normalize="rms", **changes))
    profile.save(tmp_path / "profile.json")
    again = Profile.load(tmp_path / "profile.json")
    assert again == profile
    assert again.format == changes.get("format", 2)


def test_a_category_may_have_a_rule(tmp_path):
    Profile.from_dict(with_general(rule="divprune")).save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json").categories["general"].rule == "divprune"
    without = Profile.from_dict(with_general(rule=None))
    assert without == Profile.from_dict(with_general())
    assert "rule" not in without.to_dict()["categories"]["general"]  # older releases can read it


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
        (make(format=3), "format must be 1 or 2, the versions this package reads, got 3"),
        (make(format=1.0), "format must be 1 or 2, .* got 1.0"),
        (make(format=True), "format must be 1 or 2, .* got True"),
        (make(format=3, layers=[]), "format must be 1 or 2, .* got 3"),
        (make(name=""), "name must be a non-empty string, got ''"),
        (make(model_type=3), "model_type must be a non-empty string, got 3"),
        (make(source=" "), "source must be a non-empty string, got ' '"),
        (
            make(layers=[]),
            r"layers must be a non-empty list of either all negative layer indices or all "
            r"relative depths in 0..1, each once, from shallow to deep, got \[\]",
        ),
        (make(layers=-2), "layers must be .* got -2"),
        (make(layers="-2"), "layers must be .* got '-2'"),
        (make(layers=[-2, 0]), r"layers must be .* either all .* or all .* got \[-2, 0\]"),
        (make(layers=[-1, 0.5]), r"layers must be .* either all .* or all .* got \[-1, 0.5\]"),
        (make(layers=[-2, -1.0]), r"layers must be .* got \[-2, -1.0\]"),
        (make(layers=[-2, -4]), r"layers must be .* from shallow to deep, got \[-2, -4\]"),
        (make(layers=[-2, -2]), r"layers must be .* each once.* got \[-2, -2\]"),
        (make(layers=[0.9, 0.5]), r"layers must be .* from shallow to deep, got \[0.9, 0.5\]"),
        (make(layers=[0.5, 0.5]), r"layers must be .* each once.* got \[0.5, 0.5\]"),
        (make(layers=[0.5, 1.1]), r"layers must be .* got \[0.5, 1.1\]"),
        (make(layers=[0.5, True]), r"layers must be .* got \[0.5, True\]"),
        (make(layers=[math.nan, 1]), r"layers must be .* got \[nan, 1\]"),
        (make(layers=[0.5, None]), r"layers must be .* got \[0.5, None\]"),
        (
            make(format=1, layers=[0.5, 1.0]),
            r"layers must be a non-empty list of negative layer indices \(all that format 1 has\), "
            r"each once, from shallow to deep, got \[0.5, 1.0\]",
        ),
        (
            make(salience_layer=0),
            "salience_layer must be null, a negative layer index or a relative depth above 0 and "
            "at most 1, got 0",
        ),
        (make(salience_layer=0.0), "salience_layer must be null, a negative .* got 0.0"),
        (make(salience_layer=2), "salience_layer must be null, a negative .* got 2"),
        (make(salience_layer=-1.5), "salience_layer must be null, a negative .* got -1.5"),
        (make(salience_layer=True), "salience_layer must be null, a negative .* got True"),
        (make(salience_layer="-1"), "salience_layer must be null, a negative .* got '-1'"),
        (
            make(format=1, salience_layer=0.5),
            r"salience_layer must be null or a negative layer index \(all that format 1 has\), "
            r"got 0.5",
        ),
        (
            make(fuse_into="both"),
            'fuse_into must be null, "projector" or "selection", got \'both\'',
        ),
        (
            make(format=1, fuse_into="selection"),
            "fuse_into needs format 2, .*'selection' in format 1",
        ),
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
        (with_general(rule=""), "categories.general.rule must be null or the name of a .*, got ''"),
        (
            {**with_general(rule="scope"), "format": 1},
            "categories.general.rule needs format 2, got 'scope' in format 1",
        ),
        (with_general(rule=3), "categories.general.rule must be null or .*, got 3"),
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
    with pytest.raises(ValueError, match=r"profile\.json: format must be 1 or 2"):
        Profile.load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"profile\.json is not valid JSON: .* line 1, column 2"):
        Profile.load(path)


@pytest.mark.parametrize("budget", [0, -3, 1.5, True, "8"])
def test_a_bad_number_of_kept_tokens_is_named(budget):
    with pytest.raises(ValueError, match="budget must be an integer of at least 1, got"):
        Profile.from_dict(make()).pivot_count("ocr", budget)


@pytest.mark.parametrize("tokens", [0, -3, -0.5, math.nan, math.inf, True, "8", None])
def test_a_bad_budget_is_named(tokens):
    with pytest.raises(ValueError, match=f"budget must be a finite number above 0, got .?{tokens}"):
        Profile.from_dict(make()).budget("ocr", tokens)


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


def test_numbers_may_be_those_of_numpy(tmp_path):
    weights = numpy.array([0.25, 0.75], numpy.float32)
    policy = CategoryPolicy(weights, numpy.float64(0.5), numpy.int64(2))
    made = Profile(
        "name", "llava", numpy.array([-3, -1]), "source", {"general": policy}, numpy.int32(-2)
    )
    plain = Profile(
        "name", "llava", (-3, -1), "source", {"general": CategoryPolicy((0.25, 0.75), 0.5, 2)}, -2
    )
    assert made == plain
    made.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == plain
    assert made.budget("general", numpy.float32(3.5)) == 7
    assert made.pivot_count("general", numpy.int16(10)) == 5
    assert made.for_tower(numpy.int64(4)) == plain.for_tower(4)
    depths = Profile(
        "name", "llava", numpy.array([0.5, 1.0], numpy.float32), "source", {"general": policy}
    )
    assert depths.layers == (0.5, 1.0)
    with pytest.raises(ValueError, match="budget must be an integer"):
        made.pivot_count("general", numpy.bool_(True))
    with pytest.raises(ValueError, match="pivot_ratio must be a number"):
        boolean = dataclasses.replace(policy, pivot_ratio=numpy.bool_(True))
        dataclasses.replace(made, categories={"general": boolean})
