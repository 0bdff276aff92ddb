"""Times every op next to its baselines, prints one table and records the rows.

    make bench
    python -m pytest benchmarks --benchmark-only -k "fuse_layers and bfloat16"

Rows go to ``benchmarks/results/cpu/<op>.json``, and what is made from all of them to ``ops.csv``
and ``ops.png`` beside it. An op's file is only written when all of its benchmarks have run and
passed, on the cpu backend; any other run writes where ``--results`` says, or nowhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import machine
import ops
import plot
import pytest
import rows
import table
import timing
import torch
from case import Case, Implementation, Inputs, NotServed
from rows import HostRow

from clasp_kernels import backends, use_backend

RECORDED = machine.ROOT / "benchmarks" / "results" / "cpu"


class Session:
    """What has been timed so far."""

    def __init__(self) -> None:
        self.rows: dict[str, list[HostRow]] = {}
        self.counted: dict[tuple[str, str], machine.Counted] = {}
        """By op and case."""
        self.unfinished: set[str] = set()
        """The ops of which something was not asked for or failed."""
        self.left_out: dict[tuple[str, str], list[str]] = {}
        """By op and case: what is not there to be timed, and why."""
        self._latest: Case | None = None
        self._inputs: list[Inputs] = []
        self._expected: Any = None

    def inputs_and_expected(self, case: Case) -> tuple[list[Inputs], Any]:
        """Those of the latest case are kept, and no others: they may take gigabytes. What is
        expected is that of the first inputs."""
        if self._latest != case:
            self._inputs, self._expected = [], None
            self._inputs = [case.inputs("cpu", seed) for seed in range(case.turns)]
            self._expected = case.ours(*self._inputs[0])
            self._latest = case
        return self._inputs, self._expected


SESSION = pytest.StashKey[Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--results",
        type=Path,
        help="the folder that the rows are written to (default: benchmarks/results/cpu, which "
        "takes whole ops only)",
    )
    parser.addoption(
        "--op-backend",
        default="cpu",
        choices=backends.NAMES,
        help="the backend that is timed (default: cpu)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SESSION] = Session()
    machine.keep_freed_memory()


def op_of(item: pytest.Item) -> str:
    """The op that it times, or nothing."""
    callspec = getattr(item, "callspec", None)
    return callspec.params["case"].op if callspec and "case" in callspec.params else ""


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        item.config.stash[SESSION].unfinished.add(op_of(item))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if any("::" in argument for argument in config.args):
        config.stash[SESSION].unfinished.update(op_of(item) for item in items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.config.stash[SESSION].unfinished.add(op_of(item))
    return report


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any) -> Iterator[Callable[..., None]]:
    """Times one implementation on one case and checks that it computes what ours does."""
    session = request.config.stash[SESSION]
    backend = request.config.getoption("--op-backend")

    def run(case: Case, implementation: Implementation) -> None:
        op, name = case.op, implementation.name
        choice = backends.choose(op, "cpu", backend)
        if choice.backend is None:
            pytest.fail(
                f"the {backend} backend does not serve {op}: {choice.reason} To time another, "
                "pass --op-backend=NAME.",
                pytrace=False,
            )
        inputs, expected = session.inputs_and_expected(case)
        benchmark.group = f"{op} {case}"
        try:
            with implementation.within("cpu"):
                function = implementation.make()
                turns = itertools.cycle([implementation.adapt(one) for one in inputs])
                compiles = implementation.kind == rows.COMPILED
                result = timing.time_call(benchmark, lambda: function(*next(turns)), compiles)
        except NotServed as reason:
            session.left_out.setdefault((op, str(case)), []).append(f"{name} ({reason})")
            pytest.skip(str(reason))
        assert implementation.agrees(case, inputs[0], expected, result), "computes something else"
        if benchmark.stats is None:  # --benchmark-disable
            return
        stats = benchmark.stats.stats
        session.counted[op, str(case)] = case.counted()
        session.rows.setdefault(op, []).append(
            HostRow(
                op,
                str(case),
                name,
                implementation.kind,
                round(1e6 * stats.median, 2),
                stats.rounds,
                case.shape(),
                implementation.note,
                min_us=round(1e6 * stats.min, 2),
                iqr_us=round(1e6 * stats.iqr, 2),
            )
        )

    with torch.no_grad(), use_backend(backend):
        yield run


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    session = config.stash[SESSION]
    if not session.rows:
        return
    environment = machine.environment() | {"backend": config.getoption("--op-backend")}
    rates = machine.measure_rates()
    environment |= rates.as_json()
    folder = config.getoption("--results") or RECORDED
    official = folder.resolve() == RECORDED
    recorded = False
    for op, timed in session.rows.items():
        rows.compare(timed, session.counted, rates)
        rows.note_left_out(timed, session.left_out)
        whole = op not in session.unfinished and environment["backend"] == "cpu"
        if whole or not official:
            packages = machine.installed(ops.load(op).packages)
            rows.write_json(folder / f"{op}.json", environment | packages, timed)
            recorded = True
        else:
            terminalreporter.line(f"{op}: not recorded, as only whole ops on the cpu backend are.")
    if recorded:
        rows.write_csv(folder / "ops.csv", rows.read_all(folder))
        plot.draw(folder / "ops.png", rows.read_all(folder))
        terminalreporter.line(f"Results: {folder}")
    terminalreporter.ensure_newline()
    table.show([row for timed in session.rows.values() for row in timed], environment)
