"""The report on compiled kernels, for both the Triton and the CUDA check.

A kernel fails if it

- spills registers or keeps arrays in local memory;
- uses so many registers that less than half the warps fit on a multiprocessor (kernel_resources.py
  defines this precisely),

unless an exemption gives a reason. An exemption that no kernel needs fails too.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field

from kernel_resources import Resources

FEW_WARPS = "leaves less than half the warps for its registers"
SPILLS = "spills registers to local memory (or indexes an array at run time)"


CAPABILITIES = (80, 90, 100)
"""The GPUs that kernels are compiled for."""


def asked_capabilities(description: str, arguments: Sequence[str] | None = None) -> tuple[int, ...]:
    """Returns the GPUs that a check's command line names, all if it names none."""
    parser = ArgumentParser(description=description)
    parser.add_argument(
        "capabilities",
        nargs="*",
        type=int,
        metavar="CAPABILITY",
        help=f"of {', '.join(map(str, CAPABILITIES))}; default: all",
    )
    asked = tuple(parser.parse_args(arguments).capabilities)
    for capability in asked:
        if capability not in CAPABILITIES:
            parser.error(
                f"CAPABILITY must be {', '.join(map(str, CAPABILITIES))}, got {capability}"
            )
    return asked or CAPABILITIES


@dataclass(frozen=True)
class Exemption:
    """Lets a kernel spill, or leave few warps, within a limit. Exactly one of the two is given."""

    kernel: str
    """As the summary names it."""
    reason: str
    _: KW_ONLY
    spilled: int | None = None
    """The most bytes of local memory that a thread may have."""
    warps: int | None = None
    """The fewest of 64 warps that must fit in spite of the kernel's registers."""
    capabilities: tuple[int, ...] = CAPABILITIES

    def __post_init__(self) -> None:
        if (self.spilled is None) == (self.warps is None):
            raise ValueError(f"{self.kernel}: give spilled or warps, and not both")

    @property
    def problem(self) -> str:
        return FEW_WARPS if self.spilled is None else SPILLS

    def suffices(self, resources: Resources) -> bool:
        if self.warps is not None:
            return resources.warps_by_registers >= self.warps
        return self.spilled is not None and resources.spilled <= self.spilled

    def __str__(self) -> str:
        if self.warps is not None:
            return f"may leave {self.warps} of 64 warps"
        return f"may spill {self.spilled} bytes"


def problems_of(resources: Resources) -> Iterator[tuple[str, str]]:
    """What is wrong with a kernel, and by how much."""
    if resources.spilled > 0:
        yield SPILLS, f"{resources.spilled} bytes"
    if resources.registers_halve_occupancy:
        yield (
            FEW_WARPS,
            f"{resources.registers} registers, {resources.warps_by_registers} of 64 warps, "
            f"otherwise {resources.warps_by_the_rest}",
        )


@dataclass
class Line:
    """One line of the summary: a kernel on one architecture."""

    variants: dict[str, Resources] = field(default_factory=dict)
    num_problems: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        resources = self.variants.values()
        spilled = max(kernel.spilled for kernel in resources)
        return (
            f"{len(resources):3} variants  {max(kernel.registers for kernel in resources):3} "
            f"registers  {f'{spilled} bytes' if spilled else 'nothing'} spilled  "
            f"{max(kernel.shared for kernel in resources) / 1024:5.1f} KiB shared  "
            f"{min(kernel.warps for kernel in resources):2} of 64 warps {self.seconds:6.1f} s"
        )


# Maps a problem to its places, and each place to its architectures.
Problems = dict[str, dict[str, list[str]]]


class Report:
    """Collects the findings of a check; ``show`` prints them."""

    def __init__(
        self,
        exceptions: list[Exemption],
        unjudged: str = "",
        capabilities: Sequence[int] = CAPABILITIES,
    ) -> None:
        """If ``unjudged`` is given, it is the reason why registers and spills do not fail the
        check. If not all GPUs are among ``capabilities``, unneeded exemptions do not fail it."""
        self.exceptions = exceptions
        self.unjudged = unjudged
        self.every_gpu = set(capabilities) == set(CAPABILITIES)
        self.complete = True
        self.lines: dict[tuple[str, int, str], Line] = {}  # kernel, capability, architecture
        self.problems: Problems = {}
        self.told: Problems = {}
        self.needed: set[Exemption] = set()

    @property
    def kernels(self) -> set[str]:
        return {kernel for kernel, *_ in self.lines}

    def add_error(self, error: str, where: str, architecture: str) -> None:
        """Adds a compilation error. The report is then incomplete, so unneeded exemptions do not
        fail."""
        self.complete = False
        _add(self.problems, error, where, architecture)

    def add(
        self,
        kernel: str,
        variant: str,
        where: str,
        architecture: str,
        resources: Resources,
        *,
        seconds: float,
        problems: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Adds a compiled kernel. Resources are judged once per variant, ``problems`` every time.

        ``variant`` distinguishes compilations of the same kernel. A problem is a pair of its kind
        and its detail.
        """
        key = (kernel, resources.capability, architecture)
        line = self.lines.setdefault(key, Line())
        line.seconds += seconds
        found = [(self.problems, *problem) for problem in problems]
        if variant not in line.variants:
            line.variants[variant] = resources
            kind = self.told if self.unjudged else self.problems
            found += [(kind, *problem) for problem in self._judge(kernel, resources)]
        for kind, problem, detail in found:
            line.num_problems += kind is self.problems
            _add(kind, f"{kernel} {problem}", f"{where}: {detail}", architecture)

    def _judge(self, kernel: str, resources: Resources) -> list[tuple[str, str]]:
        problems = []
        for problem, numbers in problems_of(resources):
            exempt = [
                each
                for each in self.exceptions
                if (each.kernel, each.problem) == (kernel, problem)
                and resources.capability in each.capabilities
            ]
            self.needed.update(exempt)
            if not exempt:
                problems.append((f"{problem}; fix it, or give a reason in EXCEPTIONS:", numbers))
            elif not exempt[0].suffices(resources):
                limit = f"the exception says that it {exempt[0]}:"
                problems.append((f"{problem}; {limit}", numbers))
        return problems

    def show(self, complaints: Sequence[str] = ()) -> bool:
        """Prints one line per kernel and architecture, then the problems.

        Returns True if there are none. ``complaints`` are sentences about further problems.
        """
        for (kernel, _, architecture), line in sorted(self.lines.items()):
            verdict = f"FAILED ({line.num_problems})" if line.num_problems else "ok"
            print(f"{verdict:<12} {architecture:<7} {kernel:<44} {line}")
        for exemption in self.exceptions:
            print(f"{'excepted':<12} {exemption.kernel} {exemption}: {exemption.reason}")
        for problem, where in (*self.problems.items(), *self.told.items()):
            print(f"\n{problem}")
            for text, architectures in where.items():
                print(f"  {', '.join(architectures)}: {text}")
        stale = [
            f"unneeded exception: {exemption.kernel} {exemption}; remove it from EXCEPTIONS."
            for exemption in self.exceptions
            if exemption not in self.needed
            and self.complete
            and self.every_gpu
            and not self.unjudged
        ]
        for sentence in (*stale, *complaints):
            print(f"\n{sentence}")
        if self.unjudged:
            print(f"not judged: registers and spills ({self.unjudged})")
        return not (self.problems or stale or complaints)


def _add(problems: Problems, problem: str, where: str, architecture: str) -> None:
    problems.setdefault(problem, {}).setdefault(where, []).append(architecture)
