"""Schedules: valid and invalid stages, token counts of an image, and means."""

import copy
import pickle
from fractions import Fraction
from itertools import combinations, pairwise

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clasp_kernels.policy import Schedule


@st.composite
def schedules(draw, mixed=True):
    """Draw a schedule of counts and, if ``mixed``, fractions; each kind falls by itself."""
    layers = draw(st.lists(st.integers(0, 80), min_size=1, max_size=5, unique=True).map(sorted))
    fraction = st.floats(0, 1, exclude_min=True)
    tokens = st.integers(1, 3000) | fraction if mixed else st.integers(1, 3000)
    drawn = draw(st.lists(tokens, min_size=len(layers), max_size=len(layers), unique_by=repr))
    ordered = {kind: sorted(t for t in drawn if isinstance(t, kind)) for kind in (int, float)}
    return Schedule({layer: ordered[type(t)].pop() for layer, t in zip(layers, drawn, strict=True)})


@st.composite
def towers(draw):
    """Draw a number of decoder layers, and stages within them."""
    num_layers = draw(st.integers(1, 80))
    stages = st.lists(st.integers(0, num_layers - 1), min_size=1, max_size=6, unique=True)
    return num_layers, draw(stages.map(sorted))


@pytest.mark.parametrize("tokens", [32, 0.25])
def test_input_prunes_before_the_first_layer(tokens):
    schedule = Schedule.input(tokens)
    assert schedule.stages == ((0, tokens),)
    assert schedule.layers == (0,)
    assert schedule.prunes_input_only
    assert schedule == Schedule({0: tokens})
    assert hash(schedule) == hash(Schedule({0: tokens}))


@pytest.mark.parametrize("stages", [{2: 32}, {0: 32, 2: 16}])
def test_other_schedules_do_not_prune_at_the_input_only(stages):
    assert not Schedule(stages).prunes_input_only


@given(schedules(), st.randoms())
def test_stages_come_in_layer_order_whatever_order_they_are_given_in(schedule, random):
    shuffled = list(schedule.stages)
    random.shuffle(shuffled)
    assert Schedule(dict(shuffled)).stages == schedule.stages
    assert schedule.layers == tuple(sorted(layer for layer, _ in shuffled))


@given(schedules())
def test_text_repr_and_copies_give_an_equal_schedule(schedule):
    for again in (
        eval(repr(schedule)),
        Schedule.parse(str(schedule)),
        Schedule.parse(f" {schedule} ".replace(":", " : ").replace(",", " , ")),
        pickle.loads(pickle.dumps(schedule)),
        copy.deepcopy(schedule),
    ):
        assert again == schedule
        assert hash(again) == hash(schedule)
        assert repr(again) == repr(schedule)


def test_one_token_is_not_all_tokens():
    assert Schedule({2: 1}) != Schedule({2: 1.0})
    assert Schedule({2: 1}).counts(9) == ((2, 1),)
    assert Schedule({2: 1.0}).counts(9) == ((2, 9.0),)
    assert Schedule({2: 1}) != ((2, 1),)


def test_a_schedule_cannot_be_changed():
    with pytest.raises(AttributeError):
        Schedule({2: 8}).stages = ()


COUNT_OR_FRACTION = (
    r"must be an integer of at least 1 \(tokens\) or a float above 0 and at most 1 \(a fraction\)"
)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({}, "tokens_after must map at least one decoder layer to the tokens kept, got {}"),
        (16, "tokens_after must map .* got 16"),
        ({-1: 16}, "a decoder layer must be an integer of at least 0, got -1"),
        ({1.5: 16}, "a decoder layer must be an integer of at least 0, got 1.5"),
        ({True: 16}, "a decoder layer must be an integer of at least 0, got True"),
        ({2: 0}, f"tokens kept after layer 2 {COUNT_OR_FRACTION}, got 0$"),
        ({2: 0.0}, f"tokens kept after layer 2 {COUNT_OR_FRACTION}, got 0.0$"),
        ({2: 8.0}, f"tokens kept after layer 2 {COUNT_OR_FRACTION}, got 8.0"),
        ({2: -0.5}, f"tokens kept after layer 2 {COUNT_OR_FRACTION}, got -0.5"),
        ({2: True}, f"tokens kept after layer 2 {COUNT_OR_FRACTION}, got True"),
        ({2: float("nan")}, f"tokens kept after layer 2 {COUNT_OR_FRACTION}, got nan"),
        ({2: numpy.bool_(True)}, f"tokens kept after layer 2 {COUNT_OR_FRACTION}, got .*True"),
        ({2: "8"}, f"tokens kept after layer 2 {COUNT_OR_FRACTION}, got '8'"),
        (
            {2: 16, 6: 16},
            "must fall from stage to stage: 16 after layer 2, then 16 after layer 6",
        ),
        ({6: 64, 2: 32}, "must fall from stage to stage: 32 after layer 2, then 64 after layer 6"),
        ({2: 0.5, 6: 0.5}, "must fall .* 0.5 after layer 2, then 0.5 after layer 6"),
        ({2: 64, 4: 0.5, 6: 65}, "must fall .* 64 after layer 2, then 65 after layer 6"),
        ({2: 0.2, 4: 9, 6: 0.3}, "must fall .* 0.2 after layer 2, then 0.3 after layer 6"),
    ],
)
def test_a_bad_schedule_is_named(stages, message):
    with pytest.raises(ValueError, match=message):
        Schedule(stages)


def test_layers_and_tokens_may_be_numbers_of_numpy():
    schedule = Schedule({numpy.int64(2): numpy.int32(8), 6: numpy.uint8(4), 7: numpy.float32(0.5)})
    assert repr(schedule) == "Schedule({2: 8, 6: 4, 7: 0.5})"
    with pytest.raises(ValueError, match="must be an integer"):
        Schedule({numpy.bool_(True): 8})
    # A positive number that becomes 0.0 as a float is refused.
    with pytest.raises(ValueError, match=COUNT_OR_FRACTION):
        Schedule({2: Fraction(1, 10**400)})


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("2:128", {2: 128}),
        ("6:64,2:128", {2: 128, 6: 64}),
        (" 2 :\t0.5 , 4:.2\n", {2: 0.5, 4: 0.2}),
        ("0:1., 2:5e-1, 3:2E-05", {0: 1.0, 2: 0.5, 3: 2e-5}),
        ("2:1", {2: 1}),
    ],
)
def test_text_says_counts_and_fractions(text, stages):
    assert Schedule.parse(text) == Schedule(stages)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "each stage must be layer:tokens, like 2:128 or 2:0.5, .* got ''"),
        ("2", "each stage must be layer:tokens, .* got '2'"),
        ("2:64,", "each stage must be layer:tokens, .* got ''"),
        ("2:64 4:32", "each stage must be layer:tokens, .* got '2:64 4:32'"),
        ("2:-1", "each stage must be layer:tokens, .* got '2:-1'"),
        ("2:nan", "each stage must be layer:tokens, .* got '2:nan'"),
        ("2:1_0", "each stage must be layer:tokens, .* got '2:1_0'"),
        ("2.0:64", "each stage must be layer:tokens, .* got '2.0:64'"),
        ("2:64,02:32", "each layer must be named once, but 2 is named twice"),
        ("2:0", f"tokens kept after layer 2 {COUNT_OR_FRACTION}, got 0"),
        ("2:1e2", f"tokens kept after layer 2 {COUNT_OR_FRACTION}, got 100.0"),
        ("2:64,4:64", "tokens kept must fall from stage to stage"),
    ],
)
def test_bad_text_is_quoted(text, message):
    with pytest.raises(ValueError, match=message) as error:
        Schedule.parse(text)
    assert str(error.value).startswith(f"schedule {text!r}: ")


@given(schedules(), st.integers(1, 4000))
def test_counts_never_rise_and_never_exceed_the_image(schedule, num_tokens):
    wanted = [t * num_tokens if isinstance(t, float) else t for _, t in schedule.stages]
    try:
        counts = schedule.counts(num_tokens)
    except ValueError as error:
        # The message names the stage that keeps more and the stage before it.
        limited = [
            (layer, min(t, num_tokens)) for layer, t in zip(schedule.layers, wanted, strict=True)
        ]
        (layer, tokens), (later, more) = next(p for p in pairwise(limited) if p[1][1] > p[0][1])
        assert f"{tokens} after layer {layer}, then {more} after layer {later}" in str(error)
        return
    assert tuple(layer for layer, _ in counts) == schedule.layers
    assert [tokens for _, tokens in counts] == [min(tokens, num_tokens) for tokens in wanted]
    assert all(above >= below for (_, above), (_, below) in pairwise(((0, num_tokens), *counts)))


def test_mixed_counts_compare_once_the_image_is_known():
    schedule = Schedule({2: 0.25, 6: 64})
    assert schedule.counts(256) == ((2, 64.0), (6, 64))
    with pytest.raises(ValueError, match=r"schedule 2:0.25,6:64 keeps more .* of 255 visual"):
        schedule.counts(255)


@pytest.mark.parametrize("num_tokens", [0, 2.5, True])
def test_an_image_has_a_whole_number_of_tokens(num_tokens):
    for ask in (Schedule({2: 8}).counts, lambda n: Schedule({2: 8}).check_fits(n, 6)):
        with pytest.raises(ValueError, match="num_tokens must be an integer of at least 1, got"):
            ask(num_tokens)


@given(schedules(mixed=False), st.integers(1, 4000), st.integers(81, 90))
def test_average_is_the_mean_of_what_each_layer_sees(schedule, num_tokens, num_layers):
    seen = [
        min([num_tokens] + [tokens for stage, tokens in schedule.stages if stage <= layer])
        for layer in range(num_layers)
    ]
    assert schedule.average(num_tokens, num_layers) == sum(seen) / num_layers


@pytest.mark.parametrize("ask", [Schedule.average, Schedule.check_fits])
def test_a_layer_must_be_left_after_the_last_stage(ask):
    ask(Schedule({2: 64, 5: 32}), 576, 6)
    with pytest.raises(ValueError, match=r"once 6 decoder .* nothing runs .* must be in 0\.\.5"):
        ask(Schedule({2: 64, 6: 32}), 576, 6)
    with pytest.raises(ValueError, match="num_layers must be an integer of at least 1, got 0"):
        ask(Schedule({2: 64}), 576, 0)


def check_solution(schedule, average, num_layers, layers, num_tokens):
    assert schedule.layers == tuple(layers)
    counts = [tokens for _, tokens in schedule.stages]
    assert all(isinstance(tokens, int) for tokens in counts)
    assert all(above > below for above, below in pairwise((num_tokens, *counts, 0)))
    seen = Fraction(schedule.average(num_tokens, num_layers))
    assert abs(seen - average) <= Fraction(1, 2) + Fraction(1, 10**9)


@given(towers(), st.integers(7, 5000), st.floats(0, 1))
def test_progressive_counts_fall_and_have_the_average(tower, num_tokens, share):
    num_layers, layers = tower
    least = layers[0] * num_tokens // num_layers
    average = max(1, least + round(share * (num_tokens - least)))
    try:
        schedule = Schedule.progressive(average, layers, num_layers, num_tokens)
    except ValueError as error:
        assert "average must be " in str(error)
        return
    check_solution(schedule, average, num_layers, layers, num_tokens)


@pytest.mark.parametrize(
    ("average", "layers", "num_layers", "num_tokens"),
    [(2, (0, 5, 6, 15, 16), 31, 54), (139, (2, 17, 21, 37), 39, 1894)],
)
def test_progressive_has_the_average_where_counts_had_to_be_moved_apart(
    average, layers, num_layers, num_tokens
):
    schedule = Schedule.progressive(average, layers, num_layers, num_tokens)
    check_solution(schedule, average, num_layers, layers, num_tokens)


def test_progressive_refuses_an_average_only_where_no_counts_have_it():
    for num_layers in range(1, 7):
        for num_stages in range(1, min(num_layers, 3) + 1):
            for layers in combinations(range(num_layers), num_stages):
                spans = [b - a for a, b in pairwise((*layers, num_layers))]
                for num_tokens in range(num_stages + 1, 9):
                    before = layers[0] * num_tokens
                    sums = [
                        before + sum(c * span for c, span in zip(counts, spans, strict=True))
                        for counts in combinations(range(num_tokens - 1, 0, -1), num_stages)
                    ]
                    for average in range(1, num_tokens + 2):
                        possible = (
                            average < num_tokens
                            and before + sum(spans) <= average * num_layers
                            and any(2 * abs(s - average * num_layers) <= num_layers for s in sums)
                        )
                        arguments = average, layers, num_layers, num_tokens
                        if possible:
                            schedule = Schedule.progressive(*arguments)
                            check_solution(schedule, average, num_layers, layers, num_tokens)
                        else:
                            with pytest.raises(
                                ValueError, match=r"average must be (in \d+\.\.\d+ |a fraction)"
                            ):
                                Schedule.progressive(*arguments)


@given(towers(), st.floats(0.01, 0.99))
def test_progressive_fractions_fall_by_one_ratio_and_have_the_average(tower, share):
    num_layers, layers = tower
    before = layers[0] / num_layers
    average = before + (1 - before) * share
    schedule = Schedule.progressive(average, layers, num_layers)
    fractions = [tokens for _, tokens in schedule.stages]
    assert schedule.layers == tuple(layers)
    assert fractions == pytest.approx([fractions[0] ** k for k in range(1, len(layers) + 1)])
    assert schedule.average(1, num_layers) == pytest.approx(average, rel=1e-14)
    assert schedule == Schedule.progressive(average, layers, num_layers, num_tokens=9)


@given(towers(), st.integers(100, 5000), st.floats(0.05, 0.95))
def test_progressive_counts_stay_within_a_token_of_the_ratio(tower, num_tokens, share):
    num_layers, layers = tower
    before = layers[0] / num_layers
    average = round(num_tokens * (before + (1 - before) * share))
    try:
        exact = Schedule.progressive(average / num_tokens, layers, num_layers).counts(num_tokens)
        schedule = Schedule.progressive(average, layers, num_layers, num_tokens)
    except ValueError as error:
        assert "average " in str(error)
        return
    exact = [tokens for _, tokens in exact]
    # If counts are closer than this, rounding could make them equal, so they are moved apart.
    if all(above - below > 2 for above, below in pairwise((num_tokens, *exact, -1))):
        for (_, tokens), wanted in zip(schedule.stages, exact, strict=True):
            assert abs(tokens - wanted) < 1


def test_progressive_makes_up_for_what_was_rounded_before():
    # 476.70, 394.52 and 326.50 would all be rounded up.
    schedule = Schedule.progressive(380)
    assert schedule == Schedule({2: 477, 6: 394, 15: 327})
    assert schedule.average(576, 32) == 380.15625


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"average": 0}, f"average {COUNT_OR_FRACTION}, got 0$"),
        ({"average": 192.0}, f"average {COUNT_OR_FRACTION}, got 192.0"),
        ({"average": True}, f"average {COUNT_OR_FRACTION}, got True"),
        ({"average": 1.0}, "average as a fraction must be above 0.0625 and below 1, got 1.0"),
        (
            {"average": 0.0625},
            "must be above 0.0625 and .* got 0.0625; the layers before the first stage "
            r"\(2\) already make the mean at least 0.0625. Use an earlier first stage \(0 prunes",
        ),
        (
            {"average": 36},
            r"average must be in 37\.\.574 visual tokens, as counts fall from num_tokens = 576 "
            r"over 3 stages, got 36; the layers before the first stage \(2\) already make the mean "
            "at least 36. Use an earlier first stage",
        ),
        ({"average": 1, "layers": (0, 6, 15)}, r"in 2\.\.574 visual tokens, as .* got 1$"),
        (
            {"average": 1, "layers": (1,), "num_layers": 3, "num_tokens": 2},
            "average must be a fraction, as counts fall from num_tokens = 2 over 1 stage, got 1",
        ),
        (
            {"average": 576},
            r"average must be in 37\.\.574 visual tokens, as counts fall from num_tokens = 576 "
            "over 3 stages, got 576$",
        ),
        ({"average": 9, "layers": ()}, r"layers must be one or more ascending .* got \(\)"),
        ({"average": 9, "layers": 2}, "layers must be .* got 2"),
        ({"average": 9, "layers": (2, 2)}, r"layers must be .* got \(2, 2\)"),
        ({"average": 9, "layers": (-1, 2)}, r"layers must be .* got \(-1, 2\)"),
        ({"average": 9, "layers": (2, 2.5)}, r"layers must be .* got \(2, 2.5\)"),
        (
            {"average": 9, "num_layers": 15},
            r"layers must be .* integers in 0\.\.14, as num_layers is 15, got \(2, 6, 15\)",
        ),
        ({"average": 9, "num_layers": 0}, "num_layers must be an integer of at least 1, got 0"),
        ({"average": 2, "num_tokens": 3}, "num_tokens must be an integer of at least 4, got 3"),
    ],
)
def test_what_progressive_cannot_solve_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule.progressive(**arguments)


def test_progressive_takes_numbers_and_layers_of_numpy():
    layers = numpy.array([2, 6, 15])
    assert Schedule.progressive(numpy.int64(192), layers) == Schedule.progressive(192)
    assert Schedule.progressive(numpy.float64(0.5), layers) == Schedule.progressive(0.5)


def test_a_solved_schedule_fits_what_it_was_solved_for():
    schedule = Schedule.progressive(192)
    schedule.check_fits(576, 32)
    for num_tokens, num_layers in ((144, 6), (144, 32), (576, 28)):
        for solved in (schedule, copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
            with pytest.raises(
                ValueError,
                match=f"solved for 576 visual tokens in 32 decoder layers, but this model has "
                f"{num_tokens} in {num_layers}: give num_tokens= and num_layers=",
            ):
                solved.check_fits(num_tokens, num_layers)
    by_hand = eval(repr(schedule))
    by_hand.check_fits(144, 28)
    assert by_hand == schedule
    assert hash(by_hand) == hash(schedule)


def test_solved_fractions_fit_every_image():
    schedule = Schedule.progressive(0.5)
    schedule.check_fits(576, 32)
    schedule.check_fits(144, 32)
    with pytest.raises(
        ValueError, match="solved for 32 decoder layers, but this model has 28: give num_layers="
    ):
        schedule.check_fits(576, 28)
