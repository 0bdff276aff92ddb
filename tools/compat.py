"""Run tests/models with each release of transformers that the package is tested with.

    make compat                        # RELEASES='oldest 5.23.0' chooses

A release other than the environment's is laid over it: installed into a folder of its own, which
comes first in PYTHONPATH, together with what it requires and the environment lacks. The environment
itself stays as it is. A run of all releases writes its results into README.md.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "clasp_kernels" / "models" / "compat.py"
README = ROOT / "README.md"
BEGIN, END = "<!-- compat: make compat -->\n", "<!-- end of compat -->"
LOGS = ROOT / "build" / "compat"
# What the kernels were built with stays; with another one a release would not be tested alone.
NEVER_LAID_OVER = {"torch", "numpy"}
IMPORT = "import transformers; print(transformers.__version__, transformers.__file__)"


class CompatError(Exception):
    """Something the person at the keyboard can mend; its text says how."""


class Result(NamedTuple):
    release: str
    passed: int
    skipped: int
    failed: int
    ok: bool


def tested_releases() -> tuple[str, ...]:
    """TESTED_RELEASES, read without importing what would import transformers."""
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
    """The first distribution of this name on a path."""
    return next(iter(importlib.metadata.distributions(name=name, path=list(path))), None)


def unmet(folder: Path) -> list[str]:
    """What the packages of an overlay require that is neither in it nor in the environment."""
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
    """The folder with this release, made if it is not there or no longer fits the environment."""
    folder = overlays / release
    found = find("transformers", str(folder))
    if found is not None and found.version == release and not unmet(folder):
        return folder
    overlays.mkdir(parents=True, exist_ok=True)
    # Made elsewhere and renamed, so that a folder with the right name is a complete one.
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
    """The environment variables of a process that imports this release."""
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


def test(release: str, overlays: Path, workers: str) -> Result:
    variables = importing(release, overlays)
    print(f"transformers {release}: ", end="", flush=True)
    LOGS.mkdir(parents=True, exist_ok=True)
    log, report = LOGS / f"{release}.txt", LOGS / f"{release}.xml"
    report.unlink(missing_ok=True)
    # What is marked deep, wrappers and compilers above all, is for the newest release alone.
    chosen = ("tests/models", "-m", "not deep")
    command = (sys.executable, "-m", "pytest", *chosen, "-n", workers, "--dist", "loadfile")
    options = ("-p", "no:cacheprovider", f"--junitxml={report}")
    start = time.monotonic()
    with log.open("w") as output:
        status = subprocess.run(
            [*command, *options], cwd=ROOT, env=variables, stdout=output, stderr=output
        ).returncode
    seconds = time.monotonic() - start
    suite = ElementTree.parse(report).find("testsuite") if report.exists() else None
    counts = dict.fromkeys(("tests", "skipped", "failures", "errors"), 0)
    if suite is not None:
        counts = {name: int(suite.attrib[name]) for name in counts}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - counts["skipped"] - failed
    print(f"{passed} passed, {failed} failed, {counts['skipped']} skipped in {seconds:.0f} s")
    ok = status == 0 and passed > 0
    if not ok:
        lines = log.read_text().splitlines()
        print(*(line for line in lines if line.startswith(("FAILED", "ERROR"))), sep="\n")
        print(f"All that pytest said is in {log.relative_to(ROOT)}.")
    return Result(release, passed, counts["skipped"], failed, ok)


def with_table(text: str, results: Sequence[Result]) -> str:
    """README.md with these results between its two markers."""
    if BEGIN not in text.partition(END)[0]:
        raise CompatError(f"README.md has no place for the results: {BEGIN.strip()} {END}")
    before, _, rest = text.partition(BEGIN)
    rows = [f"| {r.release} | {r.passed} | {r.skipped} | {r.failed} |\n" for r in results]
    head = "| transformers | tests passed | skipped | failed |\n| --- | --- | --- | --- |\n"
    torch = importlib.metadata.version("torch")
    versions = f"\nWith torch {torch} and Python {platform.python_version()}.\n"
    return f"{before}{BEGIN}{head}{''.join(rows)}{versions}{END}{rest.partition(END)[2]}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Test with several releases of transformers.")
    parser.add_argument("--overlays", type=Path, required=True, help="where releases are kept")
    parser.add_argument("--workers", default="2", help="processes that share the tests of one")
    parser.add_argument("releases", nargs="*", help="oldest, newest or a version; default: all")
    arguments = parser.parse_args(argv)
    try:
        tested = tested_releases()
        chosen = choose(arguments.releases, tested)
        every = chosen == list(tested)
        if every:
            with_table(README.read_text(), [])  # before minutes of tests, not after
        overlays = arguments.overlays.resolve()
        results = [test(release, overlays, arguments.workers) for release in chosen]
        if every:
            README.write_text(with_table(README.read_text(), results))
    except (CompatError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
