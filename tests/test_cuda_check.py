"""The check of the CUDA kernels must fail on kernels that would be slow on a GPU, and name them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cuda_check
import cuda_toolkit
import pytest
from kernel_report import Exemption


def has_nvcc() -> bool:
    try:
        return bool(cuda_toolkit.find_nvcc(os.environ, cuda_check.MAJOR))
    except cuda_toolkit.Missing:
        return False


needs_nvcc = pytest.mark.skipif(not has_nvcc(), reason="nvcc is not installed")

# All COUNT values of a thread are live at once: each is used after the last one is read.
KERNELS = """
namespace clasp::cuda {{
namespace {{

template <int COUNT>
__device__ void reverse(float* values) {{
  float mine[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) mine[i] = values[i * 4096 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < COUNT; ++i) values[i * 4096 + threadIdx.x] = mine[COUNT - 1 - i];
}}

__global__ __launch_bounds__(128) void sound_kernel(float* values) {{
  __shared__ float first[128];
  first[threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  values[threadIdx.x] = first[127 - threadIdx.x];
}}

{kernels}

}}  // namespace
void* kernels[] = {{(void*)&sound_kernel, {names}}};
}}  // namespace clasp::cuda
"""
GREEDY = """template <int COUNT>
__global__ __launch_bounds__(256) void greedy_kernel(float* values) { reverse<COUNT>(values); }"""
SPILLING = """
__global__ __launch_bounds__(1024) void spilling_kernel(float* values) { reverse<100>(values); }"""
UNBOUNDED = "__global__ void unbounded_kernel(float* values) { values[0] = 0; }"
WARNS = """
__global__ __launch_bounds__(32) void warns_kernel(float* values) { int idle; values[0] = 0; }"""


@pytest.fixture
def check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    def run(
        kernels: str, *names: str, exceptions: list[Exemption] | None = None
    ) -> tuple[int, str]:
        folder = tmp_path / "cuda"
        folder.mkdir()
        addresses = ", ".join(f"(void*)&{name}" for name in names)
        text = KERNELS.format(kernels=kernels, names=addresses)
        (folder / "kernels.cu").write_text(text)
        monkeypatch.setattr(cuda_check, "CSRC", tmp_path)
        monkeypatch.setattr(cuda_check, "EXCEPTIONS", exceptions or [])
        status = cuda_check.main()
        return status, capsys.readouterr().out

    return run


@needs_nvcc
def test_sound_kernels_pass(check: Callable[..., tuple[int, str]]) -> None:
    status, output = check("")
    assert status == 0, output
    assert [line.split()[:3] for line in output.splitlines()] == [
        ["ok", f"sm_{architecture}", "sound_kernel"] for architecture in ("80", "90a", "100")
    ]
    assert "4 of 64 warps" in output and "0.5 KiB shared" in output, output


@needs_nvcc
def test_spills_and_few_warps_fail(check: Callable[..., tuple[int, str]]) -> None:
    status, output = check(GREEDY + SPILLING, "greedy_kernel<180>", "spilling_kernel")
    assert status == 1, output
    failed = {tuple(line.split()[2:4]) for line in output.splitlines() if line[:6] == "FAILED"}
    assert failed == {
        (f"sm_{architecture}", f"{kernel}_kernel")
        for architecture in cuda_check.ARCHITECTURES.values()
        for kernel in ("greedy", "spilling")
    }
    assert "sm_80, sm_90a, sm_100: greedy_kernel<180>: " in output, output


@needs_nvcc
def test_exceptions_are_listed_and_have_to_be_needed(
    check: Callable[..., tuple[int, str]],
) -> None:
    exceptions = [
        Exemption("greedy_kernel", "It has nothing to wait for.", warps=8),
        Exemption("greedy_kernel", "Long ago it did.", spilled=100),
    ]
    status, output = check(GREEDY, "greedy_kernel<180>", exceptions=exceptions)
    assert status == 1, output
    assert "FAILED" not in output, output
    assert "greedy_kernel may leave 8 of 64 warps: It has nothing to wait for." in output, output
    assert "unneeded exception: greedy_kernel may spill 100 bytes; remove it" in output, output


@needs_nvcc
def test_half_of_the_warps_that_are_enough_need_no_exception(
    check: Callable[..., tuple[int, str]],
) -> None:
    kernel = GREEDY.replace("(256)", "(512, 1)")  # 16 warps of up to 128 registers
    status, output = check(kernel, "greedy_kernel<100>")
    assert status == 0, output
    assert output.count("16 of 64 warps") == len(cuda_check.ARCHITECTURES), output


@needs_nvcc
def test_warnings_fail(check: Callable[..., tuple[int, str]]) -> None:
    exceptions = [Exemption("warns_kernel", "Who knows, as it compiles not.", warps=8)]
    status, output = check(WARNS, "warns_kernel", exceptions=exceptions)
    assert status == 1
    assert "idle" in output and "nothing needs" not in output, output


@needs_nvcc
def test_a_kernel_has_to_say_how_many_threads_it_runs(
    check: Callable[..., tuple[int, str]],
) -> None:
    with pytest.raises(RuntimeError, match=r"unbounded_kernel.* has no __launch_bounds__"):
        check(UNBOUNDED, "unbounded_kernel")


def test_block_sizes_are_found_among_other_directives() -> None:
    directives = {
        "plain": ".maxntid 256",
        "wide": ".maxntid 512, 1, 1\n.maxnreg 128",
        "tall": ".minnctapersm 1\n.maxntid 32, 8, 2",
        "fixed": ".reqntid 64, 1, 1",
        "last": ".maxntid 1024, 1, 1\n.minnctapersm 1",
    }
    ptx = "".join(
        f".visible .entry {name}(\n.param .u64 {name}_0,\n.param .align 8 .b8 {name}_1[16]\n)\n"
        f"{text}\n{{\n.reg .b32 %r<2>;\nret;\n}}\n"
        for name, text in directives.items()
    )
    ptxas = "".join(
        f"ptxas info : Compiling entry function '{name}' for 'sm_90a'\n"
        f"ptxas info : Function properties for {name}\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info : Used 32 registers, used 1 barriers, 64 bytes smem\n"
        for name in directives
    )
    kernels = cuda_check.read_kernels(ptxas, ptx, capability=90)
    assert {kernel.name: kernel.resources.num_warps for kernel in kernels} == {
        **{"plain": 8, "wide": 16, "tall": 16, "fixed": 2, "last": 32},
    }


def test_without_nvcc_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    assert cuda_check.main() == 0
    assert capsys.readouterr().out == (
        "not checked: CUDA kernels: CUDA_HOME=/nowhere has no bin/nvcc "
        "(install a CUDA 13 toolkit and set CUDA_HOME to it)\n"
    )
