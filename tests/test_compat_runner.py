"""`make compat` with real pip and pytest, on small fake releases of transformers."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import compat
import pytest

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = importlib.metadata.version("transformers")
MARKED = "Before.\n\n<!-- compat: make compat -->\n<!-- end of compat -->\n\nAfter.\n"
# Replaces the real family table, which imports the package.
FAMILY_TABLE = """
import json, pathlib
releases = json.loads(pathlib.Path(__file__).parents[1].joinpath("docs/compat.json").read_text())
print("families:", *releases["releases"])
"""
TESTS = """
import os, pytest, transformers

def test_release():
    assert transformers.__version__ != os.environ.get("BROKEN")

@pytest.mark.skipif(transformers.__version__ == "1.0", reason="not yet")
def test_requirement():
    pass
"""

CONFTEST = """
def pytest_addoption(parser):
    parser.addoption("--all-combinations", action="store_true")
"""
# Stands for the environment's transformers, whose import takes seconds.
STAND_IN = f"__version__ = {INSTALLED!r}"

EVERY_FAMILY = """
import pytest, transformers

@pytest.mark.parametrize("where", ["before", "inside"])
@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_pruning_is_masking(family, where):
    assert (family, where, transformers.__version__) != ("qwen", "inside", "1.0")
"""


def wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """Write a wheel of a package that only has a version and requirements."""
    module = name.replace("-", "_")
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    files = {
        f"{module}/__init__.py": f"__version__ = {version!r}",
        f"{module}-{version}.dist-info/METADATA": "\n".join(metadata),
        f"{module}-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any",
        f"{module}-{version}.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as file:
        for path, text in files.items():
            file.writestr(path, text)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path)


def make_checkout(tmp_path: Path) -> Path:
    """Return a checkout with two small fake releases besides the installed one."""
    for folder in ("tools", "clasp_kernels/models", "tests/models", "docs", "wheels"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "compat.py", tmp_path / "tools")
    (tmp_path / "clasp_kernels" / "models" / "compat.py").write_text(
        f'import no_such_module\nTESTED_RELEASES: tuple[str, ...] = ("1.0", "2.0", "{INSTALLED}")\n'
    )
    (tmp_path / "tests" / "conftest.py").write_text(CONFTEST)
    (tmp_path / "tests" / "models" / "test_small.py").write_text(TESTS)
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "transformers.py").write_text(STAND_IN)
    (tmp_path / "tools" / "family_table.py").write_text(FAMILY_TABLE)
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "docs" / "compatibility.md").write_text(MARKED)
    wheel(tmp_path / "wheels", "transformers", "1.0", "clasp-hub<2", "packaging", "numpy>=1")
    wheel(tmp_path / "wheels", "transformers", "2.0", "torch>=1; extra == 'torch'")
    wheel(tmp_path / "wheels", "clasp-hub", "1.5", "clasp-http")
    wheel(tmp_path / "wheels", "clasp-hub", "2.5")
    wheel(tmp_path / "wheels", "clasp-http", "0.1")
    return tmp_path


@pytest.fixture(scope="module")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the overlays of both fake releases, for tests that are not about making them."""
    checkout = make_checkout(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in pip_variables(checkout).items():
            patch.setenv(name, value)
        for release in ("1.0", "2.0"):
            compat.overlay(release, checkout / "kept")
    return checkout / "kept"


@pytest.fixture
def prepared(checkout: Path, overlays: Path) -> Path:
    """Return a checkout with the overlays of both fake releases."""
    shutil.copytree(overlays, checkout / "kept")
    return checkout


def pip_variables(checkout: Path) -> dict[str, str]:
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(checkout / "wheels")}


def run_compat(checkout: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHONPATH"))}
    # pytest-xdist is the only plugin that a run needs.
    plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"}
    script = (checkout / "tools" / "compat.py", "--overlays", checkout / "kept", "--workers", "0")
    return subprocess.run(
        [sys.executable, *script, *words],
        env={
            **inherited,
            **plugins,
            **pip_variables(checkout),
            "PYTHONPATH": str(checkout / "installed"),
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_release_is_tested_and_the_table_written(checkout: Path) -> None:
    done = run_compat(checkout)
    assert done.returncode == 0, done.stderr
    assert [re.sub(r"\d+ s$", "0 s", line) for line in done.stdout.splitlines()] == [
        "transformers 1.0: 1 passed, 0 failed, 1 skipped in 0 s",
        "transformers 2.0: 2 passed, 0 failed, 0 skipped in 0 s",
        f"transformers {INSTALLED}: 2 passed, 0 failed, 0 skipped in 0 s",
        f"families: 1.0 2.0 {INSTALLED}",
    ]
    readme = (checkout / "docs" / "compatibility.md").read_text()
    assert "| 1.0 | 1 | 1 | 0 |\n| 2.0 | 2 | 0 | 0 |\n" in readme
    assert f"torch {importlib.metadata.version('torch')}" in readme
    assert re.sub(r"(?s)(compat -->\n).*(<!-- end)", r"\1\2", readme) == MARKED


def test_a_new_table_replaces_the_old_one() -> None:
    first = compat.with_table(MARKED, compat.as_record({"1.0": compat.Result(9, 8, 7)}))
    record = compat.as_record({"1.0": compat.Result(7, 8, 9)})
    assert compat.with_table(first, record) == compat.with_table(MARKED, record) != first


def test_what_passes_is_recorded_for_each_family(prepared: Path) -> None:
    folder = prepared / "tests" / "models" / "families"
    folder.mkdir()
    (folder / "test_every_family.py").write_text(EVERY_FAMILY)
    (folder / "test_qwen.py").write_text("def test_its_own():\n    pass\n")
    assert run_compat(prepared).returncode == 1
    releases = json.loads((prepared / "docs" / "compat.json").read_text())["releases"]
    assert list(releases) == ["1.0", "2.0", INSTALLED]
    nothing = {"passed": 0, "skipped": 0, "failed": 0, "before": False, "inside": False}
    assert releases["1.0"]["families"] == {
        # Tests outside of the families' files count for LLaVA.
        "llava": {**nothing, "passed": 1 + 2, "skipped": 1, "before": True, "inside": True},
        "qwen": {**nothing, "passed": 1 + 1, "failed": 1, "before": True},
    }
    assert releases["2.0"]["families"]["qwen"] == {
        **nothing,
        "passed": 1 + 2,
        "before": True,
        "inside": True,
    }


def test_a_quick_run_leaves_out_files_that_there_are(prepared: Path) -> None:
    assert all((ROOT / "tests" / "models" / name).is_file() for name in compat.LEFT_OUT)
    (prepared / "tests" / "models" / "test_views.py").write_text("1 / 0")
    done = run_compat(prepared, "--quick", "2.0")
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr
    assert run_compat(prepared, "2.0").returncode == 1


def test_a_family_whose_tests_cannot_be_imported_fails(prepared: Path) -> None:
    folder = prepared / "tests" / "models" / "families"
    folder.mkdir()
    (folder / "test_qwen.py").write_text("import no_such_module\n")
    assert run_compat(prepared, "2.0").returncode == 1
    result = compat.read_report(prepared / "build" / "compat" / "2.0.xml")
    assert result.families == {"qwen": compat.Family(failed=1)}


def test_an_overlay_has_what_the_environment_lacks_and_no_more(prepared: Path) -> None:
    kept = {path.stem for path in (prepared / "kept" / "1.0").glob("*.dist-info")}
    assert kept == {"transformers-1.0", "clasp_hub-1.5", "clasp_http-0.1"}
    shutil.rmtree(prepared / "wheels")
    assert run_compat(prepared, "1.0").returncode == 0, "kept for the next time"


def test_an_overlay_that_is_incomplete_is_made_again(prepared: Path) -> None:
    for path in (prepared / "kept" / "1.0").glob("clasp_http*"):
        shutil.rmtree(path)
    assert run_compat(prepared, "oldest").returncode == 0
    assert (prepared / "kept" / "1.0" / "clasp_http").exists()


def test_an_installation_that_fails_leaves_no_overlay(checkout: Path) -> None:
    (checkout / "wheels" / "clasp_http-0.1-py3-none-any.whl").unlink()
    done = run_compat(checkout, "oldest")
    assert done.returncode == 1
    assert "error: pip could not install clasp-http" in done.stderr
    assert list((checkout / "kept").iterdir()) == []


def test_no_other_torch_or_numpy_is_laid_over(checkout: Path) -> None:
    wheel(checkout / "wheels", "transformers", "2.0", "torch>=99")
    wheel(checkout / "wheels", "torch", "99.0")
    done = run_compat(checkout, "2.0")
    assert done.returncode == 1
    assert "transformers 2.0 does not fit this environment: it requires torch>=99" in done.stderr


def test_what_is_tested_is_what_is_imported(prepared: Path) -> None:
    (prepared / "transformers.py").write_text("__version__ = '2.0'")
    done = run_compat(prepared, "2.0")
    assert done.returncode == 1
    assert "transformers 2.0 is not what is imported" in done.stderr


def test_a_failing_release_fails_and_says_where_to_read_on(prepared: Path) -> None:
    done = run_compat(prepared, "2.0", "oldest", BROKEN="1.0")
    assert done.returncode == 1
    assert "transformers 1.0: 0 passed, 1 failed, 1 skipped" in done.stdout
    (log,) = re.findall(r"pytest said is in (.*)\.$", done.stdout, re.M)
    assert "test_release" in (prepared / log).read_text()
    assert "transformers 2.0: 2 passed" in done.stdout
    assert (prepared / "docs" / "compatibility.md").read_text() == MARKED, "not all releases ran"


@pytest.mark.parametrize("text", ["", "def test_it():\n    import pytest; pytest.skip()", "1 / 0"])
def test_a_release_that_ran_no_test_fails(prepared: Path, text: str) -> None:
    (prepared / "tests" / "models" / "test_small.py").write_text(text)
    assert run_compat(prepared, "2.0").returncode == 1


def test_an_unknown_release_is_refused_in_one_sentence(checkout: Path) -> None:
    done = run_compat(checkout, "1.1")
    assert done.returncode == 1 and done.stdout == ""
    assert f"RELEASES=1.1 is none of oldest, newest, 1.0, 2.0, {INSTALLED}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_readme_without_a_place_for_the_table(checkout: Path) -> None:
    (checkout / "docs" / "compatibility.md").write_text("No markers.\n")
    done = run_compat(checkout)
    assert done.returncode == 1 and done.stdout == ""
    assert "docs/compatibility.md has no place for the results" in done.stderr
