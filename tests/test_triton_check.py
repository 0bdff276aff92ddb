"""The check of the Triton kernels must fail on kernels that would be slow, or fail, on a GPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import triton_check
from kernel_report import Exemption, Report
from kernel_resources import Resources

ROOT = Path(__file__).resolve().parent.parent

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

# A softmax without the exponential: all values of a block are live until the maximum is known.
KERNELS = """
import torch, triton, triton.language as tl

@triton.jit
def total(b_x):
    return tl.sum(b_x)

@triton.jit
def _share(p_x, p_out, stride, BLOCK: tl.constexpr):
    b_x = tl.load(p_x + tl.program_id(0) * stride + tl.arange(0, BLOCK)).to(tl.float32)
    b_out = (b_x / total(b_x)).to(p_x.dtype.element_ty)
    tl.store(p_out + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), b_out)

@triton.jit
def _copy(p_x, p_out, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_out + i, tl.load(p_x + i))

def LAUNCHER(x, block, num_warps, maxnreg):
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    options = {"num_warps": num_warps, "maxnreg": maxnreg}
    _share[(x.shape[0],)](x, out, x.stride(0), BLOCK=block, **options)
    if x.dtype == torch.float64:
        _copy[(x.shape[0],)](x, out, BLOCK=block)
    return out
"""

CASES = """
import importlib.metadata, torch
from kernel_report import Exemption
from triton_case import case, meta

@case
def rows(batch, *, scalar=torch.float32, size=1024, num_warps=4, maxnreg=None, start=0):
    return meta(batch, size + start, scalar=scalar)[:, start:], size, num_warps, maxnreg

CASES = {CASES}
EXCEPTIONS = {EXCEPTIONS}
JUDGED_WITH = ".".join(importlib.metadata.version("triton").split(".")[:2])
"""


def check(
    folder: Path, launchers: dict[str, str], cases: str, exceptions: str = "[]", *capabilities: str
) -> subprocess.CompletedProcess[str]:
    """Run the check in a checkout with these launchers, which call KERNELS, and these cases."""
    shutil.copytree(ROOT / "tools", folder / "tools")
    package = folder / "clasp_kernels" / "triton"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    for name, text in launchers.items():
        (package / f"{name}.py").write_text(text)
    text = CASES.replace("{CASES}", cases).replace("{EXCEPTIONS}", exceptions)
    (folder / "tools" / "triton_cases.py").write_text(text)
    return subprocess.run(
        [sys.executable, folder / "tools" / "triton_check.py", *capabilities],
        # The check must ignore these: the tests set the first, and the second would hide the PTX.
        env={**os.environ, "TRITON_INTERPRET": "1", "TRITON_STORE_BINARY_ONLY": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def launcher(name: str, text: str = KERNELS) -> dict[str, str]:
    return {name: text.replace("LAUNCHER", name)}


# The cases of some launchers together launch every kernel.
COMPLETE = KERNELS.replace("_copy[", "_share[")
CROWDED = "rows(size=4096, num_warps=1)"
SPILLING = "rows(num_warps=1, maxnreg=24)"


@needs_triton
def test_sound_kernels_pass_with_a_line_for_each_architecture(tmp_path: Path) -> None:
    done = check(
        tmp_path,
        launcher("share", COMPLETE),
        f"{{'share': [rows(wide=True), rows(scalar=torch.bfloat16, wide=True), {CROWDED}]}}",
        "[Exemption('share._share', warps=8, reason='the block is the row')]",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, exception = done.stdout.splitlines()
    assert [line.split()[:5] for line in lines] == [
        ["ok", f"sm_{capability}", "share._share", "3", "variants"] for capability in (80, 90, 100)
    ]
    assert exception.endswith("share._share may leave 8 of 64 warps: the block is the row")


@needs_triton
def test_unsound_kernels_fail(tmp_path: Path) -> None:
    done = check(
        tmp_path,
        {**launcher("share", COMPLETE), **launcher("crowds", COMPLETE), **launcher("forgets")},
        f"""{{
            'share': [
                {SPILLING},
                {CROWDED},
                rows(scalar=torch.bfloat16, start=1, wide=True),
            ],
            'crowds': [{SPILLING}, {CROWDED}],
            'forgets': [rows()],
        }}""",
        """[
            Exemption('share._copy', warps=8, reason='none that any launch needs'),
            Exemption('share._share', warps=8, reason='another GPU', capabilities=(70,)),
            Exemption('crowds._share', warps=16, reason='too few all the same'),
            Exemption('crowds._share', spilled=4, reason='too few all the same'),
        ]""",
    )
    assert done.returncode == 1, done.stderr
    let = "fix it, or give a reason in EXCEPTIONS:\n  sm_"
    everywhere = "sm_80, sm_90, sm_100: "
    spills = "_share spills registers to local memory (or indexes an array at run time)"
    crowds = "_share leaves less than half the warps for its registers"
    for complaint in (
        f"\nshare.{spills}; {let}",
        f"\nshare.{crowds}; {let}",
        "share(num_warps=1, maxnreg=24): ",
        " registers, 12 of 64 warps, otherwise 32\n",
        "\nshare._share must access memory 16 bytes at a time:\n",
        f"\n  {everywhere}share(scalar=bfloat16, start=1): ld.global of 2 bytes\n",
        f"\ncrowds.{crowds}; the exception says that it may leave 16 of 64 warps:\n  sm_",
        f"\ncrowds.{spills}; the exception says that it may spill 4 bytes:\n  sm_",
        "unneeded exception: share._copy may leave 8 of 64 warps; remove it from EXCEPTIONS.",
        "unneeded exception: share._share may leave 8 of 64 warps; remove it from EXCEPTIONS.",
        "forgets._copy: no case of triton_cases.py launches it.",
    ):
        assert complaint in done.stdout, complaint
    verdicts = [line.split()[0] for line in done.stdout.splitlines() if " variants " in line]
    # For the launchers crowds, forgets and share.
    assert verdicts == 3 * ["FAILED"] + 3 * ["ok"] + 3 * ["FAILED"]


@needs_triton
def test_what_a_gpu_would_refuse_fails(tmp_path: Path) -> None:
    done = check(
        tmp_path,
        {
            **launcher("elsewhere", COMPLETE.replace("device=x.device", "device='cpu'")),
            **launcher("no_program", COMPLETE.replace("(x.shape[0],)", "(0,)")),
            **launcher("no_launch", "def LAUNCHER(*arguments): pass"),
            **launcher("no_kernel", COMPLETE.replace("total(", "undefined(", 1)),
        },
        "{op: [rows()] for op in ('elsewhere', 'no_program', 'no_launch', 'no_kernel')}",
        "[]",
        "90",
    )
    assert done.returncode == 1, done.stderr
    package = tmp_path / "clasp_kernels" / "triton"
    everywhere = "sm_90: "
    for complaint in (
        f"\n{package}/elsewhere.py:",
        f"one of shape [2, 1024] is on cpu.\n  {everywhere}elsewhere()\n",
        f"\n{package}/no_program.py:",
        f"a GPU takes no grid of (0, 1, 1).\n  {everywhere}no_program()\n",
        f"\nRuntimeError: no_launch launched nothing.\n  {everywhere}no_launch()\n",
        f"\n{package}/no_kernel.py:",
        f"NameError: total is not defined\n  {everywhere}no_kernel()\n",
    ):
        assert complaint in done.stdout, complaint


def test_a_subset_of_the_gpus_needs_no_exemption_of_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    unneeded = [Exemption("share._share", "another GPU", warps=8, capabilities=(80,))]
    assert Report(unneeded, capabilities=(90,)).show()
    assert not Report(unneeded, capabilities=(80, 90, 100)).show()
    with pytest.raises(SystemExit):
        triton_check.main(["75"])
    assert "CAPABILITY must be 80, 90, 100, got 75" in capsys.readouterr().err


def test_with_another_triton_registers_are_told_and_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(triton_check, "PACKAGE", tmp_path)  # no kernels, so none is missing
    resources = Resources(capability=80, registers=255, spilled=8, shared=0, num_warps=4)
    compiled = triton_check.Compiled("share._share", "hash", resources, [], 1.0)
    results = [triton_check.Result(triton_check.Task("share", 0, 80), "share()", [compiled], "")]
    unneeded = [Exemption("share._copy", "of another compiler", warps=8)]
    assert not triton_check.report(results, [])
    assert triton_check.report(results, unneeded, "this is another")
    shown = capsys.readouterr().out
    assert shown.count("sm_80: share(): 8 bytes\n") == 2
    assert shown.endswith("not judged: registers and spills (this is another)\n")


def test_without_triton_it_says_that_nothing_was_checked() -> None:
    code = """
import importlib.util, sys
importlib.util.find_spec = lambda name: None
import triton_check
sys.exit(triton_check.main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("not checked: Triton kernels: triton is not installed")
