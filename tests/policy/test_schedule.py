"""Schedules: what they hold and what they refuse."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clasp_kernels.policy import Schedule


def test_input_prunes_before_the_first_layer():
    schedule = Schedule.input(32)
    assert schedule.stages == ((0, 32),)
    assert schedule.prunes_input_only
    assert schedule == Schedule({0: 32})
    assert hash(schedule) == hash(Schedule({0: 32}))


@pytest.mark.parametrize("stages", [{2: 32}, {0: 32, 2: 16}])
def test_other_schedules_do_not_prune_at_the_input_only(stages):
    assert not Schedule(stages).prunes_input_only


@given(
    st.lists(st.tuples(st.integers(0, 80), st.integers(1, 3000)), min_size=1, max_size=5).filter(
        lambda pairs: len({p[0] for p in pairs}) == len({p[1] for p in pairs}) == len(pairs)
    )
)
def test_stages_come_in_layer_order_whatever_order_they_are_given_in(pairs):
    layers = sorted(layer for layer, _ in pairs)
    tokens = sorted((tokens for _, tokens in pairs), reverse=True)
    stages = tuple(zip(layers, tokens, strict=True))
    given_order = dict(sorted(stages, key=lambda stage: (stage[1] * 7919) % 101))
    assert Schedule(given_order).stages == stages
    assert eval(repr(Schedule(given_order))) == Schedule(given_order)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({}, "tokens_after must map at least one decoder layer to the tokens kept, got {}"),
        (16, "tokens_after must map .* got 16"),
        ({-1: 16}, "a decoder layer must be an integer of at least 0, got -1"),
        ({1.5: 16}, "a decoder layer must be an integer of at least 0, got 1.5"),
        ({True: 16}, "a decoder layer must be an integer of at least 0, got True"),
        ({2: 0}, "tokens kept after layer 2 must be an integer of at least 1, got 0"),
        ({2: 8.0}, "tokens kept after layer 2 must be an integer of at least 1, got 8.0"),
        (
            {2: 16, 6: 16},
            "must fall from stage to stage: 16 after layer 2, then 16 after layer 6",
        ),
        ({6: 64, 2: 32}, "must fall from stage to stage: 32 after layer 2, then 64 after layer 6"),
    ],
)
def test_a_bad_schedule_is_named(stages, message):
    with pytest.raises(ValueError, match=message):
        Schedule(stages)


def test_layers_and_tokens_may_be_integers_of_numpy():
    schedule = Schedule({numpy.int64(2): numpy.int32(8), 6: numpy.uint8(4)})
    assert repr(schedule) == "Schedule({2: 8, 6: 4})"
    for stages in ({numpy.bool_(True): 8}, {2: numpy.bool_(True)}, {2: numpy.float32(8)}):
        with pytest.raises(ValueError, match="must be an integer"):
            Schedule(stages)
