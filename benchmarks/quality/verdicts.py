"""The verdict on each part of CLASP, by the criteria of `PLAN.md`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from quality.names import BUDGETS, CONTROLS, FULL, SMALLER, WITHIN
from quality.questions import Label
from quality.resampling import Estimate, Floats, Resampled, Where, anywhere, simultaneous
from quality.rows import RULES, STAGES, Choices, inside_name, layer_name

SUPPORTED, REFUTED, UNDECIDED, UNJUDGED = "supported", "refuted", "undecided", "not judged"
NEAR = 2.0  # points within which a difference is of no use
BEHIND = "behind, or not within 1 point"
MIN_CELLS, MIN_LOSS, LOSS_AT = 12, 10.0, 16
DETAILED = ("textures", "documents")

Differences = Mapping[int, Estimate]
"""By budget, in points of retained accuracy."""


@dataclass(frozen=True)
class Comparison:
    """One row against another, at every budget that both have."""

    text: str
    samples: Mapping[int, Floats] = field(repr=False)
    """By budget, in points, [1 + draws]."""
    verdict: str = ""
    simultaneous: Differences = field(default_factory=dict)
    """With intervals that hold for all differences of all verdicts at once. No verdict uses them:
    the plan's criteria were written for the intervals of single differences."""

    @property
    def differences(self) -> Differences:
        return {budget: Estimate.of(samples) for budget, samples in self.samples.items()}


@dataclass(frozen=True)
class Verdict:
    """Whether the evidence supports a part of CLASP, and the comparisons that say so."""

    part: str
    verdict: str
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fitness:
    """Whether the test bed can judge anything."""

    cells: tuple[str, ...]
    """Those that count."""
    loss: float | None
    """The points that random tokens lose at 88.9 % pruned; None if no cell counts."""
    problems: tuple[str, ...] = field(default=())

    @property
    def is_fit(self) -> bool:
        return not self.problems


def fitness(cells: Sequence[str], resampled: Resampled | None) -> Fitness:
    """Test whether enough cells count, and whether random tokens lose enough."""
    problems = []
    if len(cells) < MIN_CELLS:
        problems.append(f"{len(cells)} cells count, fewer than {MIN_CELLS}")
    loss = None
    if resampled is not None:
        loss = 100 * (1 - float(resampled.retained(("random", LOSS_AT))[0]))
        if loss < MIN_LOSS:
            problems.append(
                f"random tokens lose {loss:.1f} points at {LOSS_AT} tokens, less than "
                f"{MIN_LOSS:.0f}"
            )
    return Fitness(tuple(cells), loss, tuple(problems))


def judged(differences: Iterable[Estimate]) -> str:
    """Judge differences in favour of a part, one a budget, in points.

    Supported: shown in favour at two budgets or more, and shown against at none. Refuted: within 2
    points of 0, or below 0, at three or more. Both can hold, if gains are shown that are small;
    then it is undecided.

    >>> judged([Estimate(3, 1, 5), Estimate(3, 1, 5), Estimate(0, -4, 4), Estimate(0, -4, 4)])
    'supported'
    >>> judged([Estimate(0, -1, 1)] * 3 + [Estimate(0, -4, 4)])
    'refuted'
    """
    found = list(differences)
    shown = sum(each.low > 0 for each in found)
    against = sum(each.high < 0 for each in found)
    useless = sum(each.high < 0 or (each.low >= -NEAR and each.high <= NEAR) for each in found)
    supported, refuted = shown >= 2 and against == 0, useless >= 3
    if supported == refuted:
        return UNDECIDED
    return SUPPORTED if supported else REFUTED


def all_of(verdicts: Iterable[str]) -> str:
    """Return the verdict on a part that needs every comparison, and that any can refute."""
    found = set(verdicts)
    if REFUTED in found:
        return REFUTED
    return SUPPORTED if found == {SUPPORTED} else UNDECIDED


def between(
    resampled: Resampled, better: str, worse: str, where: Where = anywhere
) -> dict[int, Floats]:
    """Return the difference of two rows, paired by question, at the budgets that both have."""
    return {
        budget: 100
        * (resampled.retained((better, budget), where) - resampled.retained((worse, budget), where))
        for budget in BUDGETS
        if resampled.has((better, budget)) and resampled.has((worse, budget))
    }


def compare(
    resampled: Resampled, text: str, better: str, worse: str, where: Where = anywhere
) -> Comparison:
    """Compare two rows at the budgets that both have."""
    found = Comparison(text, between(resampled, better, worse, where))
    return replace(found, verdict=judged(found.differences.values()))


def against_others(resampled: Resampled, others: Sequence[str]) -> list[Comparison]:
    """Compare *full* with other rows. Their simultaneous intervals are those of this list."""
    return _simultaneously([Comparison(name, between(resampled, FULL, name)) for name in others])


def _simultaneously(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Give the comparisons the intervals that hold for all of them at once."""
    found = iter(simultaneous([each for one in comparisons for each in one.samples.values()]))
    return [
        replace(one, simultaneous={budget: next(found) for budget in one.samples})
        for one in comparisons
    ]


def shown_better(differences: Differences) -> list[int]:
    """Return the budgets at which the worse row of a comparison is shown to be the better one."""
    return [budget for budget, each in differences.items() if each.high < 0]


def at(budgets: Iterable[int]) -> str:
    """
    >>> at([48, 32, 7]), at([16]), at([])
    ('at 48, 32 and 7', 'at 16', 'at none')
    """
    *others, last = [str(budget) for budget in budgets] or ["none"]
    return f"at {', '.join(others)} and {last}" if others else f"at {last}"


def verdicts(resampled: Resampled, choices: Choices, fit: Fitness) -> list[Verdict]:
    """Return the verdict on each part, in the plan's order."""
    found = [
        routing(resampled),
        fusion(resampled, choices),
        dual_stage(resampled),
        progressive(resampled),
        the_whole(resampled),
    ]
    every = iter(_simultaneously([each for verdict in found for each in verdict.comparisons]))
    found = [
        _with_caveats(replace(verdict, comparisons=tuple(next(every) for _ in verdict.comparisons)))
        for verdict in found
    ]
    if fit.is_fit:
        return found
    note = "the test bed is not fit: " + "; ".join(fit.problems)
    return [Verdict(each.part, UNJUDGED, each.comparisons, (note,)) for each in found]


def _with_caveats(verdict: Verdict) -> Verdict:
    """Note which comparisons the simultaneous intervals would judge otherwise."""
    notes = []
    for each in verdict.comparisons:
        otherwise = judged(each.simultaneous.values())
        if each.verdict in (SUPPORTED, REFUTED, UNDECIDED) and otherwise != each.verdict:
            notes.append(f"by simultaneous intervals, {each.text} would be {otherwise}")
    return replace(verdict, notes=(*verdict.notes, *notes))


def routing(resampled: Resampled) -> Verdict:
    comparisons = (
        compare(resampled, "full above one profile", FULL, "one profile"),
        compare(resampled, "full above the wrong category", FULL, "wrong category"),
    )
    return Verdict("routing", all_of(each.verdict for each in comparisons), comparisons)


def fusion(resampled: Resampled, choices: Choices) -> Verdict:
    best = layer_name(choices.layer)
    overall = compare(resampled, f"full above the best {best}", FULL, best)
    detailed = compare(resampled, f"the same on {' and '.join(DETAILED)}", FULL, best, _is_detailed)
    others = compare(resampled, "the same on other kinds", FULL, best, _is_not_detailed)
    verdict = all_of([overall.verdict, detailed.verdict])
    gains = [_mean(each.differences) for each in (detailed, others)]
    note = (
        f"the mean gain is {gains[0]:+.1f} points on {' and '.join(DETAILED)}, "
        f"{gains[1]:+.1f} elsewhere"
    )
    if verdict == SUPPORTED and gains[0] <= gains[1]:
        verdict = UNDECIDED
        note += ", so it is not most where it should be"
    notes = [note]
    if better := shown_better(overall.differences):
        notes.append(f"{best} is shown better than full {at(better)}")
    return Verdict("fusion", verdict, (overall, detailed, others), tuple(notes))


def dual_stage(resampled: Resampled) -> Verdict:
    comparisons = tuple(
        compare(resampled, f"full above {name}", FULL, name)
        for name in ("pivots only", "completion only")
    )
    return Verdict("dual stage", all_of(each.verdict for each in comparisons), comparisons)


def progressive(resampled: Resampled) -> Verdict:
    """Judge by "spot" questions, for each schedule. One that is supported is enough.

    Whether a schedule loses more on "whole" questions than it gains on "spot" ones is read off the
    values, at each budget where its gain is shown: no interval of the sum is taken.
    """
    comparisons, verdicts, notes = [], [], []
    for stages in STAGES:
        name = inside_name(stages)
        spot = compare(resampled, f"{name} above input on spot", name, FULL, _is_spot)
        whole = compare(resampled, f"{name} above input on whole", name, FULL, _is_whole)
        verdict = spot.verdict
        gain = {budget: each for budget, each in spot.differences.items() if each.low > 0}
        lost = [
            budget for budget, each in gain.items() if whole.differences[budget].value < -each.value
        ]
        if verdict == SUPPORTED and len(gain) - len(lost) < 2:
            verdict = UNDECIDED
            notes.append(f"{name} loses more on whole questions than it gains on spot ones")
        if len(spot.differences) < 3:
            notes.append(f"{name} has this mean at {len(spot.differences)} budgets alone")
        comparisons += [spot, whole]
        verdicts.append(verdict)
    # With fewer than three budgets a schedule cannot be refuted, which must not save the part.
    judgeable = [
        verdict
        for verdict, spot in zip(verdicts, comparisons[::2], strict=True)
        if len(spot.differences) >= 3
    ]
    verdict = UNDECIDED
    if SUPPORTED in verdicts:
        verdict = SUPPORTED
    elif judgeable and set(judgeable) == {REFUTED}:
        verdict = REFUTED
    return Verdict("progressive", verdict, tuple(comparisons), tuple(notes))


def the_whole(resampled: Resampled) -> Verdict:
    controls = tuple(
        compare(resampled, f"full above {name}", FULL, name) for name in (*CONTROLS, SMALLER)
    )
    best = {
        budget: max(RULES, key=lambda rule: resampled.retained((rule, budget))[0])
        for budget in BUDGETS
    }
    rules = Comparison(
        "full against the best other rule",
        {budget: between(resampled, FULL, rule)[budget] for budget, rule in best.items()},
    )
    differences = rules.differences
    near = [budget for budget, each in differences.items() if each.value >= -WITHIN]
    behind = [budget for budget, each in differences.items() if each.high < -WITHIN]
    keeps_up = len(near) >= 2 and not behind
    rules = replace(rules, verdict="within 1 point" if keeps_up else BEHIND)
    names = (
        f"{rule} {at([budget for budget in BUDGETS if best[budget] == rule])}"
        for rule in dict.fromkeys(best.values())
    )
    notes = [f"the best other rules are {', '.join(names)}", _not_tested(differences, near)]
    for rule in RULES:
        if better := shown_better(compare(resampled, rule, FULL, rule).differences):
            notes.append(f"{rule} is shown better than full {at(better)}")
    found = [all_of(each.verdict for each in some) for some in (controls, controls[:-1])]
    if found[0] == SUPPORTED and not keeps_up:
        notes.append("full is above every control, but more than 1 point behind a rule")
    verdict, without = (UNDECIDED if it == SUPPORTED and not keeps_up else it for it in found)
    notes.append(
        "this encoder was never trained on images as small as the smaller image; without this "
        f"control, the whole is {without}"
    )
    return Verdict("the whole", verdict, (*controls, rules), tuple(notes))


def _not_tested(differences: Differences, near: Sequence[int]) -> str:
    """Say what the criterion for the best other rule leaves open."""
    beyond = [budget for budget, each in differences.items() if each.low < -WITHIN]
    note = (
        f"the values are within 1 point of the best other rule {at(near)}; the criterion asks for "
        "values at two budgets, and does not test non-inferiority"
    )
    return note + (f": intervals reach below -1 point {at(beyond)}" if beyond else "")


def _mean(differences: Differences) -> float:
    return sum(each.value for each in differences.values()) / max(1, len(differences))


def _is_spot(label: Label) -> bool:
    return label.needs == "spot"


def _is_whole(label: Label) -> bool:
    return label.needs == "whole"


def _is_detailed(label: Label) -> bool:
    return label.kind in DETAILED


def _is_not_detailed(label: Label) -> bool:
    return label.kind not in DETAILED
