"""Runs tests/models with each release of transformers that the package is tested with.

    make compat                        # RELEASES='oldest 5.23.0' chooses

A release other than the environment's is installed into a folder of its own, together with its
requirements that the environment lacks. This overlay comes first in PYTHONPATH, and the environment
itself stays unchanged. A run of all releases records its results in docs/compat.json and updates
the tables of docs/compatibility.md and the README.

With --quick, the tests of LEFT_OUT do not run, and nothing is recorded. `make test-deep` does so
for the oldest release, and `make compat` tests all of them in full before a release.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "clasp_kernels" / "models" / "compat.py"
PAGE = ROOT / "docs" / "compatibility.md"
RECORD = ROOT / "docs" / "compat.json"
# Writes the tables of families. A separate process, because it imports the package.
FAMILY_TABLE = ROOT / "tools" / "family_table.py"
BEGIN, END = "<!-- compat: make compat -->\n", "<!-- end of compat -->"
LOGS = ROOT / "build" / "compat"
# Packages that must stay those the kernels were built with; otherwise a run would not test the
# release alone.
NEVER_LAID_OVER = {"torch", "numpy"}
IMPORT = "import transformers; print(transformers.__version__, transformers.__file__)"
# Tests of a single family, and per-family cases of the tests for all families. Tests in other files
# run on LLaVA.
OWN_TESTS = re.compile(r"\.families\.test_(\w+)$")
FOR_ALL = "every_family"
ORACLE_TEST = re.compile(r"test_pruning_is_masking\[(\w+)-(before|inside)\]")
GENERAL = "llava"
# What --quick leaves out: tests of our own code on top of a pruned model, and slow repetitions. The
# oracle checks every family in families/test_every_family.py, and the tests of forward, generate,
# caches, processors and of what compat.py tells apart stay.
LEFT_OUT = (
    "families/test_ecosystem.py",
    "test_explore_families.py",
    "test_oracle.py",
    "test_stages.py",
    "test_verification.py",
    "test_views.py",
    "test_wrapping.py",
)


class CompatError(Exception):
    """An error that the user can fix; its text says how."""


@dataclass
class Counts:
    """Numbers of tests by outcome."""

    passed: int = 0
    skipped: int = 0
    failed: int = 0


@dataclass
class Family(Counts):
    """The tests of a family with one release."""

    before: bool = False
    """Whether the oracle's checks of pruning before the decoder passed."""
    inside: bool = False
    """Whether the oracle's checks of pruning inside the decoder passed."""


@dataclass
class Result(Counts):
    """All tests with one release."""

    families: dict[str, Family] = field(default_factory=dict)
    """Results by ``model_type``."""


def tested_releases() -> tuple[str, ...]:
    """Reads TESTED_RELEASES without importing the module, which would import transformers."""
    for node in ast.parse(SOURCE.read_text()).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TESTED_RELEASES":
            assert node.value is not None
            releases: tuple[str, ...] = ast.literal_eval(node.value)
            return releases
    raise CompatError(f"{SOURCE} has no TESTED_RELEASES.")


def choose(words: Sequence[str], tested: Sequence[str]) -> list[str]:
    named = {"oldest": tested[0], "newest": tested[-1]}
    chosen = {named.get(word, word) for word in words or tested}
    unknown = sorted(chosen.difference(tested))
    if unknown:
        raise CompatError(
            f"RELEASES={unknown[0]} is none of oldest, newest, {', '.join(tested)}: "
            f"TESTED_RELEASES in {SOURCE.relative_to(ROOT)} lists what can be tested."
        )
    return [release for release in tested if release in chosen]


def find(name: str, *path: str) -> importlib.metadata.Distribution | None:
    """Returns the first distribution of this name on a path."""
    return next(iter(importlib.metadata.distributions(name=name, path=list(path))), None)


def unmet(folder: Path) -> list[str]:
    """Returns the requirements of an overlay's packages that neither it nor the environment
    meets."""
    lines = []
    for distribution in importlib.metadata.distributions(path=[str(folder)]):
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                found = find(requirement.name, str(folder), *sys.path)
                if not found or not requirement.specifier.contains(found.version, prereleases=True):
                    lines.append(line)
    return lines


def overlay(release: str, overlays: Path) -> Path:
    """Returns the folder with this release, made anew if it is missing or does not fit any more."""
    folder = overlays / release
    found = find("transformers", str(folder))
    if found is not None and found.version == release and not unmet(folder):
        return folder
    overlays.mkdir(parents=True, exist_ok=True)
    # Made under another name and then renamed, so that every folder of the right name is complete.
    with tempfile.TemporaryDirectory(dir=overlays) as scratch:
        made = Path(scratch, release)
        install(made, [f"transformers=={release}"])
        tried: set[str] = set()
        while wanted := unmet(made):
            names = {Requirement(line).name for line in wanted}
            if tried.intersection(wanted) or NEVER_LAID_OVER.intersection(names):
                raise CompatError(
                    f"transformers {release} does not fit this environment: it requires "
                    f"{', '.join(wanted)}."
                )
            tried.update(wanted)
            install(made, wanted)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return folder


def install(folder: Path, requirements: Sequence[str]) -> None:
    options = ("-qq", "--disable-pip-version-check", "--no-deps", "--no-compile")
    command = (sys.executable, "-m", "pip", "install", *options, "--target", str(folder))
    if subprocess.run([*command, *requirements]).returncode != 0:
        raise CompatError(f"pip could not install {', '.join(requirements)}; it says why above.")


def importing(release: str, overlays: Path) -> dict[str, str]:
    """Returns the environment variables of a process that imports this release."""
    variables = dict(os.environ)
    folder = ""
    if release != importlib.metadata.version("transformers"):
        folder = str(overlay(release, overlays))
        path = (folder, variables.get("PYTHONPATH"))
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    if not done.stdout.startswith(f"{release} {folder}"):
        raise CompatError(
            f"transformers {release} is not what is imported: {done.stdout}{done.stderr}".rstrip()
        )
    return variables


def test(release: str, overlays: Path, workers: str, quick: bool) -> tuple[Result, bool]:
    """Returns the results and whether they are good."""
    variables = importing(release, overlays)
    print(f"transformers {release}: ", end="", flush=True)
    LOGS.mkdir(parents=True, exist_ok=True)
    log, report = LOGS / f"{release}.txt", LOGS / f"{release}.xml"
    report.unlink(missing_ok=True)
    # Tests marked deep, mainly wrappers and compilers, run with the newest release only.
    chosen = ["tests/models", "-m", "not deep"]
    if quick:
        chosen += [f"--ignore=tests/models/{name}" for name in LEFT_OUT]
    else:
        chosen += ["--all-combinations"]
    command = (sys.executable, "-m", "pytest", *chosen, "-n", workers, "--dist", "loadfile")
    options = ("-p", "no:cacheprovider", f"--junitxml={report}")
    start = time.monotonic()
    with log.open("w") as output:
        status = subprocess.run(
            [*command, *options], cwd=ROOT, env=variables, stdout=output, stderr=output
        ).returncode
    seconds = time.monotonic() - start
    result = read_report(report) if report.exists() else Result()
    print(f"{result.passed} passed, {result.failed} failed, ", end="")
    print(f"{result.skipped} skipped in {seconds:.0f} s")
    ok = status == 0 and result.passed > 0
    if not ok:
        lines = log.read_text().splitlines()
        print(*(line for line in lines if line.startswith(("FAILED", "ERROR"))), sep="\n")
        print(f"All that pytest said is in {log.relative_to(ROOT)}.")
    return result, ok


def read_report(path: Path) -> Result:
    """Reads pytest's report of tests/models."""
    result = Result()
    for case in ElementTree.parse(path).iter("testcase"):
        kinds = {child.tag for child in case}
        ended = "skipped" if "skipped" in kinds else "passed"
        ended = "failed" if kinds & {"failure", "error"} else ended
        setattr(result, ended, getattr(result, ended) + 1)
        name = case.get("name", "")
        own = OWN_TESTS.search(case.get("classname") or name)  # classname may be empty
        oracle = ORACLE_TEST.fullmatch(name)
        if own and own[1] == FOR_ALL:
            if oracle is None:
                continue
            model_type = oracle[1]
        else:
            model_type = own[1] if own else GENERAL
        family = result.families.setdefault(model_type, Family())
        setattr(family, ended, getattr(family, ended) + 1)
        if oracle:
            setattr(family, oracle[2], ended == "passed")
    result.families = dict(sorted(result.families.items()))
    return result


def as_record(results: Mapping[str, Result]) -> dict[str, Any]:
    """The contents of docs/compat.json."""
    return {
        "torch": importlib.metadata.version("torch"),
        "python": platform.python_version(),
        "releases": {release: asdict(result) for release, result in results.items()},
    }


def with_table(text: str, record: Mapping[str, Any]) -> str:
    """Returns docs/compatibility.md with the results between its two markers."""
    if BEGIN not in text.partition(END)[0]:
        raise CompatError(
            f"docs/compatibility.md has no place for the results: {BEGIN.strip()} {END}"
        )
    before, _, rest = text.partition(BEGIN)
    rows = [
        f"| {release} | {counts['passed']} | {counts['skipped']} | {counts['failed']} |\n"
        for release, counts in record["releases"].items()
    ]
    head = "| transformers | tests passed | skipped | failed |\n| --- | --- | --- | --- |\n"
    versions = f"\nWith torch {record['torch']} and Python {record['python']}.\n"
    return f"{before}{BEGIN}{head}{''.join(rows)}{versions}{END}{rest.partition(END)[2]}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Test with several releases of transformers.")
    parser.add_argument("--overlays", type=Path, required=True, help="where releases are kept")
    parser.add_argument("--workers", default="2", help="processes that share the tests of one")
    parser.add_argument("--quick", action="store_true", help="leave out some tests, for time")
    parser.add_argument("releases", nargs="*", help="oldest, newest or a version; default: all")
    arguments = parser.parse_args(argv)
    try:
        tested = tested_releases()
        chosen = choose(arguments.releases, tested)
        every = chosen == list(tested) and not arguments.quick
        if every:
            with_table(PAGE.read_text(), as_record({}))  # fails before minutes of tests, not after
        overlays = arguments.overlays.resolve()
        results = {
            release: test(release, overlays, arguments.workers, arguments.quick)
            for release in chosen
        }
        if every:
            record = as_record({release: result for release, (result, _) in results.items()})
            RECORD.write_text(json.dumps(record, indent=1) + "\n")
            PAGE.write_text(with_table(PAGE.read_text(), record))
            subprocess.run([sys.executable, FAMILY_TABLE], check=True)
    except (CompatError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if all(ok for _, ok in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
