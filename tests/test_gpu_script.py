"""benchmarks/gpu.sh, run with a fake Python that claims to have a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import prefill

from clasp_kernels.backends import table

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.sh"

# A fake Python: it answers yes to every question about itself except xdist, and prints the names of
# the steps' commands. The tests fail, and the benchmarks run forever if a test asks for it. A test
# names the modules that it lacks.
PRETENDS = r"""#!/usr/bin/env bash
case "$*" in
    --version) echo "Python 3.12" ;;
    *xdist*) exit 1 ;;
    *find_spec*) echo "${LACKS:-}" ;;
    -c*) exit 0 ;;
    setup.py\ *) echo "building CUDA=$CLASP_KERNELS_BUILD_CUDA" ;;
    -m\ pip\ *) echo "pip $*" ;;
    -m\ pytest\ *) echo "pytest $*"; exit 1 ;;
    benchmarks/models/bench_prefill.py\ *) echo "prefill $*" ;;
    benchmarks/gpu/build_fps.py\ *) echo "builds $*" ;;
    benchmarks/gpu\ *)
        echo "bench $* COMMIT=$COMMIT FPS=${TORCH_CLUSTER_FPS:-}"
        [ -z "${FOR_EVER:-}" ] || exec sleep 60
        ;;
    *) echo "something else: $*"; exit 3 ;;
esac
"""


@pytest.fixture
def pretending(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(PRETENDS)
    path.chmod(0o755)
    return path


def run(
    python: Path | str, out: Path, *steps: str, **more: str
) -> subprocess.CompletedProcess[str]:
    ours = ("OUT", "WHEELS", "LIMIT", "PYTHON", "COMMIT")
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        ["bash", str(SCRIPT), *steps],
        env={**inherited, "PYTHON": str(python), "OUT": str(out), **more},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_it_is_a_sound_script() -> None:
    assert os.access(SCRIPT, os.X_OK)
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(SCRIPT)], check=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path) -> None:
    out = tmp_path / "out"
    done = run(sys.executable, out)
    assert done.returncode == 2
    assert "torch sees no GPU" in done.stderr
    assert not out.exists()


def test_a_python_without_torch_is_named(tmp_path) -> None:
    without = tmp_path / "python"
    without.write_text("#!/usr/bin/env bash\nexit 1\n")
    without.chmod(0o755)
    done = run(without, tmp_path / "out")
    assert done.returncode == 2 and f"{without} has no torch" in done.stderr
    assert run("no-such-python", tmp_path / "out").returncode == 2


def test_steps_that_are_none_and_limits_that_are_none_are_refused(pretending, tmp_path) -> None:
    done = run(pretending, tmp_path / "out", "tests", "speed")
    assert done.returncode == 2 and "there is no step speed" in done.stderr
    done = run(pretending, tmp_path / "out", "bench", LIMIT="ten")
    assert done.returncode == 2 and "got ten" in done.stderr


def test_every_step_runs_although_one_fails(pretending, tmp_path) -> None:
    out = tmp_path / "out"
    done = run(pretending, out, "build", "tests", "bench", COMMIT="abc")
    assert done.returncode == 1
    log = (out / "gpu-run.log").read_text()
    assert [path.name for path in out.iterdir()] == ["gpu-run.log"]
    for expected in ("building", "tests/kernels tests/ops", f"--results {out}", "COMMIT=abc"):
        assert expected in log
    *_, build, tests, bench = done.stdout.splitlines()
    assert build.startswith("build") and "exit status 0 " in build
    assert tests.startswith("tests") and "exit status 1 " in tests
    assert bench.startswith("bench") and "exit status 0 " in bench
    assert log.endswith("\n".join([build, tests, bench]) + "\n")


def test_only_what_is_asked_for_runs_and_success_is_success(pretending, tmp_path) -> None:
    done = run(pretending, tmp_path / "out", "bench")
    assert done.returncode == 0, done.stdout
    log = (tmp_path / "out" / "gpu-run.log").read_text()
    assert "bench " in log and "-m pytest" not in log and "building" not in log


def test_a_step_that_hangs_ends_with_the_time(pretending, tmp_path) -> None:
    done = run(pretending, tmp_path / "out", "bench", "tests", LIMIT="34", FOR_EVER="1")
    assert done.returncode == 1
    *_, bench, tests = done.stdout.splitlines()
    assert bench.startswith("bench") and "out of time" in bench
    assert tests.startswith("tests") and "exit status 1 " in tests  # it had its share of the time
    done = run(pretending, tmp_path / "out", "bench", LIMIT="16")
    assert done.returncode == 1
    assert "not run, as the time was up" in done.stdout


def test_wheels_are_put_where_only_this_run_looks(pretending, tmp_path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "some-1.0-py3-none-any.whl").touch()
    run(pretending, tmp_path / "out", "bench", WHEELS=str(wheels))
    log = (tmp_path / "out" / "gpu-run.log").read_text()
    assert "--no-index --no-deps" in log and "some-1.0-py3-none-any.whl" in log
    target = log.split("--target ")[1].split()[0]
    assert not Path(target).exists()


def test_of_an_archive_among_the_wheels_the_baseline_is_built(pretending, tmp_path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "torch_cluster-1.6.3.tar.gz").touch()
    done = run(pretending, tmp_path / "out", "bench", WHEELS=str(wheels))
    assert done.returncode == 0, done.stdout
    log = (tmp_path / "out" / "gpu-run.log").read_text()
    assert "builds" in log and str(wheels / "torch_cluster-1.6.3.tar.gz") in log
    assert "/torch_cluster_fps.so" in log.split("FPS=")[1].split()[0]
    assert "-m pip" not in log  # there are no wheels
    # It takes a minute or two, which other runs do not have.
    for step, limit in (("tests", "520"), ("short", "520"), ("bench", "200")):
        run(pretending, tmp_path / "out", step, WHEELS=str(wheels), LIMIT=limit)
        assert "builds" not in (tmp_path / "out" / "gpu-run.log").read_text()


SANITIZER = r"""#!/usr/bin/env bash
echo "sanitizer $* CACHING=${PYTORCH_NO_CUDA_MEMORY_CACHING:-}"
echo "path $PYTHONPATH"
[ -z "${REFUSES:-}" ] || { echo "========= Error: Device not supported."; exit 1; }
case "$*" in *racecheck*) exit 99 ;; esac
"""


@pytest.fixture
def sanitizing(pretending, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a fake compute-sanitizer that reports a race on the path."""
    path = tmp_path / "bin" / "compute-sanitizer"
    path.parent.mkdir()
    path.write_text(SANITIZER)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return pretending


def test_each_tool_of_compute_sanitizer_is_a_step(sanitizing, tmp_path) -> None:
    done = run(sanitizing, tmp_path / "out", "sanitize")
    assert done.returncode == 1
    *_, memcheck, racecheck, synccheck = done.stdout.splitlines()
    for line, tool, status in [
        (memcheck, "memcheck", 0),
        (racecheck, "racecheck", 99),
        (synccheck, "synccheck", 0),
    ]:
        assert line.startswith(f"{tool} ") and f"exit status {status} " in line
    log = (tmp_path / "out" / "gpu-run.log").read_text()
    assert log.count("path tests/ops:tests:") == 3
    calls = [line for line in log.splitlines() if line.startswith("sanitizer ")]
    assert [line.split("CACHING=")[1] for line in calls] == ["1", "", ""]
    for call, tool in zip(calls, ("memcheck", "racecheck", "synccheck"), strict=True):
        assert f"--tool {tool} " in call and "--error-exitcode 99" in call
        assert f"{sanitizing} tests/kernels/sanitized.py {tool} " in call
        assert ("--kernel-name kernel_substring=clasp" in call) == (tool != "memcheck")


def test_a_gpu_that_compute_sanitizer_refuses_is_offered_once(sanitizing, tmp_path) -> None:
    done = run(sanitizing, tmp_path / "out", "sanitize", REFUSES="1")
    assert done.returncode == 1
    *_, memcheck, racecheck, synccheck = done.stdout.splitlines()
    assert "exit status 1 " in memcheck
    for line, tool in ((racecheck, "racecheck"), (synccheck, "synccheck")):
        assert line == f"{tool}    not run, as compute-sanitizer refused the GPU"


def allowed(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The seconds that each part was allowed."""
    lines = [re.fullmatch(r"(\S+) +exit status .* (\d+) s", it) for it in done.stdout.splitlines()]
    return {line[1]: int(line[2]) for line in lines if line}


def test_no_step_may_take_the_time_of_those_after_it(sanitizing, tmp_path) -> None:
    seconds = allowed(run(sanitizing, tmp_path / "out"))
    assert list(seconds) == [
        *("build", "tests", "llava", "qwen"),
        *("memcheck", "racecheck", "synccheck", "bench"),
    ]
    assert seconds["build"] == 120
    assert seconds["tests"] <= 505 * 9 / 27 and seconds["llava"] <= 505 * 4 / 18
    assert seconds["memcheck"] <= 505 * 2 / 10 and 490 <= seconds["bench"] <= 505


def test_a_step_alone_has_all_of_the_time(pretending, tmp_path) -> None:
    assert allowed(run(pretending, tmp_path / "out", "tests", LIMIT="100"))["tests"] in (84, 85)


def test_the_short_run_builds_tests_and_times_the_targets_in_five_minutes(
    pretending, tmp_path
) -> None:
    done = run(pretending, tmp_path / "out", "short")
    assert "of 285 s" in done.stdout
    assert list(allowed(done)) == ["build", "contract", "targets"]
    log = (tmp_path / "out" / "gpu-run.log").read_text()
    assert "building CUDA=1" in log and " --targets" in log
    done = run(pretending, tmp_path / "out", "short", LIMIT="200")
    assert "of 200 s" in done.stdout


def test_the_models_are_timed_in_both_shapes(pretending, tmp_path) -> None:
    done = run(pretending, tmp_path / "out", "models")
    assert done.returncode == 0, done.stdout
    log = (tmp_path / "out" / "gpu-run.log").read_text()
    calls = [line for line in log.splitlines() if line.startswith("prefill ")]
    assert len(calls) == 2
    for call, name, shape in zip(calls, ("llava", "qwen"), ("7b", "qwen2.5-vl-7b"), strict=True):
        arguments = call.split()[2:]
        assert arguments[arguments.index("--out") + 1] == str(tmp_path / "out" / f"{name}.json")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["bench_prefill.py", *arguments])
            parsed = prefill.parse_arguments("")
        assert (parsed.device, parsed.shape, parsed.batches) == ("cuda", shape, [1, 4])


def test_what_is_not_installed_is_said(pretending, tmp_path) -> None:
    done = run(pretending, tmp_path / "out", "bench", LACKS="ninja hypothesis")
    assert "not installed, so what needs it fails: ninja hypothesis" in done.stdout
    assert "not installed" not in run(pretending, tmp_path / "out", "bench").stdout


@pytest.mark.deep
def test_the_short_runs_tests_are_of_every_op_backend_and_design_in_one_dtype() -> None:
    [chosen] = re.findall(r'^CONTRACT="(.*)"$', SCRIPT.read_text(), re.MULTILINE)
    [paths] = re.findall(r'run_pytest contract "\$1" (.*) -k "\$CONTRACT"', SCRIPT.read_text())
    command = [sys.executable, "-m", "pytest", "-p", "pretended_gpu", "--op-device=cuda"]
    # On a GPU nothing is interpreted, and so no combination left out.
    inherited = {name: it for name, it in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [*command, "--collect-only", "-q", "-p", "no:cacheprovider", *paths.split(), "-k", chosen],
        cwd=ROOT,
        env={**inherited, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'kernels'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    assert "torch.bfloat16" in done.stdout
    assert not [test for test in tests if "torch.float" in test]
    for op in table.ops_of("triton"):
        module = f"tests/ops/test_{op}.py"
        assert [it for it in tests if it.startswith(module) and "triton-cuda" in it], op
        assert [it for it in tests if "at_every_size" in it and f"[{op}-triton-" in it], op
    for op in table.ops_of("cuda"):
        module = f"tests/ops/test_{op}.py"
        for design in ("auto", "steps"):
            named = f"cuda-cuda-{design}"
            assert [it for it in tests if it.startswith(module) and named in it], (op, design)
        for design in ("auto", "matrix", "steps"):
            named = f"[{op}-cuda-{design}-"
            assert [it for it in tests if "at_every_size" in it and named in it], (op, design)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is run by benchmarks/gpu.sh")
def test_what_compute_sanitizer_watches_runs() -> None:
    """Run it on the CPU, with interpreted Triton kernels, and C++ kernels instead of CUDA's."""
    pytest.importorskip("triton")
    folders = ("", "tests", "tests/ops", "tests/kernels")
    path = os.pathsep.join(str(ROOT / folder) for folder in folders)
    code = """
import interpreted
interpreted.make_interpreter_faster()
import rehearsal
rehearsal.play()
import sanitized
sanitized.SIZES = sanitized.SIZES[1:3]
for tool in ("memcheck", "racecheck", "synccheck"):
    print("tool", tool)
    sanitized.main(tool, "cpu")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    designs = {f"cuda-{design}" for design in ("matrix", "steps")}
    of_cuda = {f"{op}-{design}" for op in table.ops_of("cuda") for design in designs}
    of_triton = {f"{op}-triton" for op in table.ops_of("triton")}
    expected = {"memcheck": of_cuda | of_triton, "racecheck": of_cuda, "synccheck": of_cuda}
    _, *parts = done.stdout.split("tool ")
    watched = {tool: set(lines) for tool, *lines in map(str.splitlines, parts)}
    assert watched == {
        tool: {f"{kernels}: done" for kernels in names} for tool, names in expected.items()
    }
