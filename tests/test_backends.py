"""The backend of an op: how it is chosen, reported and forced."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forking import python_with_torch
from interpreter import extension_in, python

import clasp_kernels
from clasp_kernels import backend_report, backends, select_pivots, use_backend
from clasp_kernels.backends import chooser, cpu, table, triton
from clasp_kernels.ops import _library

SALIENCE = torch.tensor([[1.0, 3.0, 2.0]])
LOADED = cpu.load().loaded
needs_extension = pytest.mark.skipif(not LOADED, reason="the C++ extension is not built")


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = """
import sys, clasp_kernels
assert clasp_kernels.__version__
heavy = {"torch", "transformers", "triton", "numpy"} & set(sys.modules)
assert not heavy, heavy
import clasp_kernels.ops
heavy = {"transformers", "triton"} & set(sys.modules)
assert not heavy, heavy
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "first",
    [
        "import clasp_kernels, torch",
        "import torch, clasp_kernels",
        "import clasp_kernels.reference, torch",
        "import clasp_kernels.backends.triton, torch",
        "import clasp_kernels.cli.app, clasp_kernels.policy, torch",
    ],
)
def test_a_saved_program_finds_the_ops_once_the_package_is_imported(
    first: str, tmp_path: Path
) -> None:
    class Best(torch.nn.Module):
        def forward(self, salience: torch.Tensor) -> torch.Tensor:
            return select_pivots(salience, 2)

    torch.export.save(torch.export.export(Best(), (SALIENCE,)), tmp_path / "best.pt2")
    torch.jit.save(torch.jit.trace(Best(), (SALIENCE,)), tmp_path / "best.pt")
    code = f"""
{first}
import sys
heavy = {{"transformers", "triton", "torch._dynamo"}} & set(sys.modules)
assert not heavy, heavy
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("clasp")]
for module in (torch, clasp_kernels._with_torch, clasp_kernels.reference):
    assert "clasp" not in type(module.__loader__).__module__, module
    assert module.__spec__.loader is module.__loader__, module
salience = torch.tensor({SALIENCE.tolist()})
print(torch.jit.load({str(tmp_path / "best.pt")!r})(salience))
print(torch.export.load({str(tmp_path / "best.pt2")!r}).module()(salience))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 2 * "tensor([[1, 2]])\n"


def test_without_torch_the_package_still_tells_its_version() -> None:
    code = """
import sys, clasp_kernels
sys.path.clear()
for _ in range(2):
    try:
        import torch
    except ModuleNotFoundError as error:
        print(clasp_kernels.__version__, error.name)
"""
    done = python(code)
    assert done.stdout == 2 * f"{clasp_kernels.__version__} torch\n", done.stderr


def test_every_public_name_resolves() -> None:
    assert set(clasp_kernels.__all__) <= set(dir(clasp_kernels))
    for name in clasp_kernels.__all__:
        assert getattr(clasp_kernels, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'fuse_layer'"):
        clasp_kernels.fuse_layer  # noqa: B018


def test_report_has_every_op_with_a_reason() -> None:
    report = backend_report()
    assert [row.op for row in report.ops if row.device == "cpu"] == sorted(table.OPS)
    assert all(row.reason for row in report.ops)
    text = str(report)
    assert torch.__version__ in text
    for row in report.ops:
        assert any(row.op in line and row.reason in line for line in text.splitlines())


def test_report_follows_what_is_forced() -> None:
    with use_backend("reference"):
        report = backend_report()
    assert report.forced == "reference"
    assert {row.backend for row in report.ops} == {"reference"}
    with use_backend("cuda"):
        report = backend_report()
    assert {row.backend for row in report.ops} == {None}
    assert "none" in str(report)


@needs_extension
def test_extension_serves_its_ops_on_cpu() -> None:
    served = {row.op: row.backend for row in backend_report().ops if row.device == "cpu"}
    assert {op for op, name in served.items() if name == "cpu"} == set(table.ops_of("cpu"))
    assert backend_report().native.loaded


def which_overload(call) -> list[str]:
    seen = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    with Spy():
        call()
    return [name.split("::")[1] for name in seen if name.startswith("clasp_kernels::")]


def test_forcing_reference_calls_the_reference() -> None:
    call = lambda: select_pivots(SALIENCE, 2)  # noqa: E731
    assert which_overload(call) == ["select_pivots"]
    with use_backend("reference"):
        assert which_overload(call) == ["select_pivots.reference"]
        with use_backend("auto"):
            assert which_overload(call) == ["select_pivots"]
        assert which_overload(call) == ["select_pivots.reference"]
    assert which_overload(call) == ["select_pivots"]


def test_forcing_ends_with_the_block_also_on_an_error() -> None:
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert backend_report().forced == "auto"


def test_one_object_can_be_entered_within_itself() -> None:
    forced = use_backend("reference")
    with forced:
        with forced:
            pass
        assert backend_report().forced == "reference"
    assert backend_report().forced == "auto"


def test_forcing_holds_for_one_thread() -> None:
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backend_report().forced))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_one_object_can_be_shared_by_threads() -> None:
    shared = use_backend("reference")
    inside, left = threading.Event(), threading.Event()
    seen = []

    def other() -> None:
        with use_backend("cpu"), shared:
            inside.set()
            assert left.wait(60)
        seen.append(backends.forced_backend())

    thread = threading.Thread(target=other)
    with shared:
        thread.start()
        assert inside.wait(60)
    assert backend_report().forced == "auto"
    left.set()
    thread.join()
    assert seen == ["auto"]


def test_forcing_holds_for_one_asyncio_task() -> None:
    """Forcing also applies if tasks interleave, and in tasks and threads that a task starts."""

    async def inside(name: str) -> list[str]:
        with use_backend(name):
            await asyncio.sleep(0)
            started = asyncio.create_task(read())
            seen = [backends.forced_backend(), await asyncio.to_thread(backends.forced_backend)]
        await asyncio.sleep(0)
        return [*seen, await started, backends.forced_backend()]

    async def read() -> str:
        await asyncio.sleep(0)
        return backends.forced_backend()

    async def main() -> list[object]:
        return list(await asyncio.gather(inside("reference"), read(), inside("cpu"), read()))

    assert asyncio.run(main()) == [
        ["reference", "reference", "reference", "auto"],
        "auto",
        ["cpu", "cpu", "cpu", "auto"],
        "auto",
    ]
    assert backends.forced_backend() == "auto"


def test_forcing_in_a_copied_context_stays_there() -> None:
    block = use_backend("reference")
    contextvars.copy_context().run(block.__enter__)
    assert backends.forced_backend() == "auto"
    with use_backend("cpu"):
        block.__exit__(None, None, None)  # was not entered in this context
        assert backends.forced_backend() == "cpu"


def test_blocks_left_out_of_order() -> None:
    """The last block that is still open decides, and nothing stays forced at the end."""

    def generator(name: str) -> Iterator[str]:
        with use_backend(name):
            yield backends.forced_backend()

    first, second = generator("reference"), generator("cpu")
    assert [next(first), next(second)] == ["reference", "cpu"]
    first.close()
    assert backends.forced_backend() == "cpu"
    second.close()
    assert backends.forced_backend() == "auto"

    shared, other = use_backend("reference"), use_backend("cpu")
    seen = []
    for step in (shared.__enter__, other.__enter__, shared.__enter__):
        step()
        seen.append(backends.forced_backend())
    for block in (shared, shared, other):
        block.__exit__(None, None, None)
        seen.append(backends.forced_backend())
    assert seen == ["reference", "cpu", "reference", "cpu", "cpu", "auto"]


def test_an_async_generator_keeps_its_backend_to_its_task() -> None:
    async def steps() -> AsyncIterator[str]:
        with use_backend("reference"):
            for _ in range(2):
                await asyncio.sleep(0)
                yield backends.forced_backend()

    async def consume() -> list[str]:
        return [step async for step in steps()] + [backends.forced_backend()]

    async def abandon() -> str:
        generator = steps()
        await anext(generator)
        del generator  # the event loop closes it in another context
        gc.collect()
        await asyncio.sleep(0)
        return "abandoned"

    async def main() -> list[object]:
        return list(await asyncio.gather(consume(), abandon(), asyncio.sleep(0)))

    assert asyncio.run(main())[:2] == [["reference", "reference", "auto"], "abandoned"]
    assert backends.forced_backend() == "auto"


def test_compiled_code_follows_the_task_that_calls_it() -> None:
    graphs: list[list[str]] = []

    def record(module: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        called = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]

        def run(*arguments: object) -> object:
            graphs.append(called[:1])
            return module.forward(*arguments)

        return run

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: select_pivots(x, 2), fullgraph=True, backend=record)

    async def forced(name: str) -> None:
        with use_backend(name):
            await asyncio.sleep(0)
            compiled(SALIENCE)
            await asyncio.sleep(0)
            compiled(SALIENCE)

    async def main() -> None:
        await asyncio.gather(forced("reference"), forced("auto"))

    for _ in range(2):
        asyncio.run(main())
    expected = [["clasp_kernels.select_pivots.reference"], ["clasp_kernels.select_pivots.default"]]
    assert graphs == expected * 4


def test_a_graph_break_inside_a_block() -> None:
    seen = []

    @torch.compiler.disable
    def look(salience: torch.Tensor) -> None:
        called = which_overload(lambda: select_pivots(salience, 1))
        seen.append((backends.forced_backend(), *called))

    def function(salience: torch.Tensor) -> torch.Tensor:
        with use_backend("reference"):
            look(salience + 1)
            best = select_pivots(salience, 2)
        look(salience + 1)
        return best

    @torch.compiler.disable
    def fail() -> None:
        with use_backend("cpu"):
            raise KeyError

    def failing(salience: torch.Tensor) -> torch.Tensor:
        with use_backend("reference"):
            best = select_pivots(salience, 2)
            fail()
            return best

    torch._dynamo.reset()
    compiled = torch.compile(function, backend="eager")
    for _ in range(2):
        assert compiled(SALIENCE).tolist() == [[1, 2]]
    assert seen == [("reference", "select_pivots.reference"), ("auto", "select_pivots")] * 2
    for _ in range(2):
        with pytest.raises(KeyError):
            torch.compile(failing, backend="eager")(SALIENCE)
        assert backends.forced_backend() == "auto"


def test_forcing_while_exporting() -> None:
    class Best(torch.nn.Module):
        def forward(self, salience: torch.Tensor) -> torch.Tensor:
            with use_backend("reference"):
                return select_pivots(salience, 2)

    for strict in (False, True):
        program = torch.export.export(Best(), (SALIENCE,), strict=strict)
        called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        assert called == ["clasp_kernels.select_pivots.reference"]
    assert backends.forced_backend() == "auto"


def test_compiled_code_follows_what_is_forced() -> None:
    graphs: list[list[str]] = []

    def record(module: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append([str(node.target) for node in module.graph.nodes])
        return module.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: select_pivots(x, 2), fullgraph=True, backend=record)
    compiled(SALIENCE)
    assert "clasp_kernels.select_pivots.default" in graphs[0]
    with use_backend("reference"):
        compiled(SALIENCE)
    assert "clasp_kernels.select_pivots.reference" in graphs[1]
    compiled(SALIENCE)
    assert len(graphs) == 2


def test_forcing_inside_compiled_code() -> None:
    graphs: list[list[str]] = []

    def record(module: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append([str(node.target) for node in module.graph.nodes])
        return module.forward

    def both(salience: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with use_backend("reference"):
            first = select_pivots(salience, 1)
        return first, select_pivots(salience, 2)

    torch._dynamo.reset()
    torch.compile(both, fullgraph=True, backend=record)(SALIENCE)
    called = [name for name in graphs[0] if name.startswith("clasp_kernels")]
    assert called == [
        "clasp_kernels.select_pivots.reference",
        "clasp_kernels.select_pivots.default",
    ]


def test_unknown_backend_is_an_error() -> None:
    with pytest.raises(ValueError) as raised:
        use_backend("gpu")
    assert str(raised.value) == (
        "use_backend: name must be one of auto, reference, cpu, triton, cuda, got 'gpu'."
    )


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("cpu", "there is no native kernel for select_pivots in clasp_kernels"),
        ("triton", "there is no Triton kernel for select_pivots in clasp_kernels"),
        ("cuda", "there is no CUDA kernel for select_pivots in clasp_kernels"),
    ],
)
def test_a_forced_backend_that_cannot_serve_raises_every_time(
    name: str, problem: str, monkeypatch
) -> None:
    bare = replace(table.OPS["select_pivots"], cpu=False, triton=None)
    monkeypatch.setitem(table.OPS, "select_pivots", bare)
    forget_choices()
    with use_backend(name):
        for _ in range(2):
            with pytest.raises(RuntimeError) as raised:
                select_pivots(SALIENCE, 2)
            message = str(raised.value)
            assert message.startswith(f"select_pivots: the {name} backend is forced but cannot")
            assert problem in message
            assert "CLASP_KERNELS_BACKEND=auto" in message
        with pytest.raises(RuntimeError, match=f"the {name} backend is forced but cannot serve"):
            torch.compile(lambda x: select_pivots(x, 2), backend="eager", fullgraph=True)(SALIENCE)


def test_cpu_kernels_refuse_other_devices() -> None:
    backend, reason = backends.choose("select_tokens", "cuda", "cpu")
    assert backend is None
    assert reason == "the native kernel of select_tokens takes CPU tensors, not cuda tensors."


def test_triton_kernels_take_no_cpu_tensors_unless_interpreted(monkeypatch) -> None:
    monkeypatch.setattr(triton, "INTERPRETED", False)
    backend, reason = backends.choose("gather_tokens", "cpu", "triton")
    assert backend is None
    assert reason.startswith("the Triton kernel of gather_tokens takes GPU tensors, not cpu")
    assert "TRITON_INTERPRET=1" in reason


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_triton_kernels_without_triton_say_how_to_get_it(device: str, monkeypatch) -> None:
    monkeypatch.setattr(triton, "installed", lambda: False)
    monkeypatch.setattr(triton, "INTERPRETED", True)
    triton.gpu_problem.cache_clear()
    backend, reason = backends.choose("gather_tokens", device, "triton")
    assert backend is None
    assert reason.startswith("Triton is not installed. Install it with `pip install triton`")
    backend, reason = backends.choose("gather_tokens", "cuda", "auto")
    assert backend == "reference"
    assert reason.startswith("Triton is not installed.")
    triton.gpu_problem.cache_clear()


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "reference"), ((8, 0), "triton")])
def test_triton_kernels_serve_gpus_that_are_new_enough(
    capability: tuple[int, int], expected: str, monkeypatch
) -> None:
    monkeypatch.setattr(triton, "installed", lambda: True)
    monkeypatch.setattr(triton, "version", lambda: "3.7.0")
    monkeypatch.setattr(triton, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: ((9, 0), capability)[gpu])
    triton.gpu_problem.cache_clear()
    backend, reason = backends.choose("gather_tokens", "cuda", "auto")
    triton.gpu_problem.cache_clear()
    assert backend == expected
    assert reason in (
        "Triton 3.7.0",
        "the Triton kernels need compute capability 8.0 or later, a GPU has 7.5.",
    )


def test_triton_tells_its_version_whatever_its_distribution_is_called() -> None:
    """The distribution may have another name, such as pytorch-triton-rocm for AMD GPUs."""
    triton = pytest.importorskip("triton")
    code = """
import importlib.metadata
from clasp_kernels.backends import triton
importlib.metadata.version = importlib.metadata.distribution = lambda name: 1 / 0
print(triton.reason())
"""
    done = python_with_torch(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Triton {triton.__version__}\n"


@pytest.mark.parametrize(
    ("op", "expected"), [("gather_tokens", "triton"), ("select_tokens", "reference")]
)
def test_amd_gpus_run_what_needs_no_order_of_writes(op: str, expected: str, monkeypatch) -> None:
    monkeypatch.setattr(triton, "installed", lambda: True)
    monkeypatch.setattr(triton, "version", lambda: "3.7.0")
    monkeypatch.setattr(triton, "INTERPRETED", False)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    triton.gpu_problem.cache_clear()
    backend, reason = backends.choose(op, "cuda", "auto")
    chooser._warn_fallback.cache_clear()
    with pytest.warns(
        RuntimeWarning, match=r"complete_tokens, cover_tokens, select_tokens fall back .* barriers"
    ):
        chooser._warn_fallback("cuda")
    chooser._warn_fallback.cache_clear()
    triton.gpu_problem.cache_clear()
    assert backend == expected
    assert expected == "triton" or "only NVIDIA barriers" in reason


def test_a_gpu_that_triton_does_not_support_is_served_by_the_reference(monkeypatch) -> None:
    """This includes ops called from a graph: the dispatcher does not check the GPU's age."""
    monkeypatch.setattr(triton, "problem", lambda op, device: "too old.")
    seen = []
    spec = replace(table.OPS["gather_tokens"], reference=lambda *given: seen.append(given))
    monkeypatch.setitem(table.OPS, "gather_tokens", spec)
    serve = _library.on_gpu("gather_tokens")
    serve(SALIENCE, SALIENCE)
    assert seen == [(SALIENCE, SALIENCE)]


# Preamble for a fresh interpreter that finds no extension.
WITHOUT_EXTENSION = (
    extension_in("/nonexistent")
    + """
import threading, torch, clasp_kernels
features, salience = torch.randn(1, 6, 3), torch.rand(1, 6)
"""
)


def test_environment_forces_for_the_whole_process() -> None:
    code = (
        WITHOUT_EXTENSION
        + """
def check():
    assert clasp_kernels.backend_report().forced == "reference"
    clasp_kernels.select_tokens(features, salience, 3, 2)
check()
thread = threading.Thread(target=check)
thread.start()
thread.join()
with clasp_kernels.use_backend("auto"):
    assert clasp_kernels.backend_report().forced == "auto"
"""
    )
    done = python(code, CLASP_KERNELS_BACKEND="reference")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "the reference was asked for: nothing to warn about"


def test_environment_with_an_unknown_name_is_an_error() -> None:
    code = """
import torch, clasp_kernels
try:
    clasp_kernels.select_pivots(torch.zeros(1, 3), 2)
except ValueError as error:
    print(error)
"""
    done = python_with_torch(code, CLASP_KERNELS_BACKEND="fast")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "CLASP_KERNELS_BACKEND must be one of auto, reference, cpu, triton, cuda, got 'fast'.\n"
    )


def test_environment_set_to_nothing_forces_nothing() -> None:
    done = python_with_torch(
        "import clasp_kernels; print(clasp_kernels.backend_report().forced)",
        CLASP_KERNELS_BACKEND="",
    )
    assert done.stdout == "auto\n", done.stderr


def forget_choices() -> None:
    chooser._entry_point.cache_clear()
    chooser._settle_once.cache_clear()


def test_choice_is_logged_once_per_op(caplog) -> None:
    forget_choices()
    with caplog.at_level(logging.INFO, logger="clasp_kernels"):
        for _ in range(3):
            select_pivots(SALIENCE, 2)
            clasp_kernels.gather_tokens(torch.zeros(1, 2, 3), torch.tensor([[0]]))
        with use_backend("reference"):
            select_pivots(SALIENCE, 2)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("select_pivots on cpu tensors is served by ")
    assert messages[1].startswith("gather_tokens on cpu tensors is served by ")


def test_choice_is_logged_under_compile(caplog) -> None:
    forget_choices()
    torch._dynamo.reset()
    with caplog.at_level(logging.INFO, logger="clasp_kernels.backends"):
        compiled = torch.compile(lambda x: select_pivots(x, 2), backend="eager", fullgraph=True)
        compiled(SALIENCE)
    assert [r.name for r in caplog.records].count("clasp_kernels.backends") == 1


def test_without_the_extension_it_falls_back_with_one_warning() -> None:
    code = (
        WITHOUT_EXTENSION
        + """
for _ in range(2):
    clasp_kernels.select_tokens(features, salience, 3, 2)
    clasp_kernels.complete_tokens(features, torch.tensor([[0]]), 2)
clasp_kernels.gather_tokens(features, torch.tensor([[0]]))
"""
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning") == 1
    line = int(done.stderr.removeprefix("<string>:").split(":")[0])
    assert "select_tokens(" in code.splitlines()[line - 1], "the warning points at the caller"
    native = ", ".join(table.ops_of("cpu"))
    assert f"{native} fall back to the slow reference backend" in done.stderr
    assert "there is no _C extension in /nonexistent" in done.stderr
    assert "pip install --no-build-isolation" in done.stderr
    assert "CLASP_KERNELS_BACKEND=reference" in done.stderr


def test_the_fallback_warning_points_at_the_caller_of_prune_tokens() -> None:
    code = WITHOUT_EXTENSION + "clasp_kernels.prune_tokens(features, features, salience, 3, 2)"
    done = python(code)
    assert done.stderr.startswith(f"<string>:{len(code.splitlines())}: RuntimeWarning"), done.stderr


def test_without_the_extension_forcing_cpu_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setattr(cpu, "_status", cpu._load(Path("/nonexistent")))
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda op, key: False)
    forget_choices()
    with use_backend("cpu"), pytest.raises(RuntimeError) as raised:
        clasp_kernels.select_tokens(SALIENCE[..., None], SALIENCE, 2, 1)
    assert str(raised.value).startswith(
        "select_tokens: the cpu backend is forced but cannot serve: there is no _C extension in "
        "/nonexistent. Build it with `pip install --no-build-isolation"
    )


def test_an_extension_that_does_not_load_names_both_versions_and_the_way_out(tmp_path) -> None:
    library = tmp_path / "_C.abi3.so"
    library.write_bytes(b"not a library")
    (tmp_path / "_build_info.py").write_text('TORCH_VERSION = "2.10.0+cpu"\n')
    status = cpu._load(tmp_path)
    assert not status.loaded
    assert status.path == library
    assert status.reason.startswith(
        f"_C.abi3.so, built with torch 2.10.0+cpu, does not load under torch {torch.__version__} ("
    )
    assert "invalid ELF header" in status.reason or "too short" in status.reason
    assert cpu.REBUILD in status.reason


def test_an_extension_without_build_info_still_explains_itself(tmp_path) -> None:
    (tmp_path / "_C.abi3.so").write_bytes(b"not a library")
    reason = cpu._load(tmp_path).reason
    assert "of an unknown version (_build_info.py is missing)" in reason


def test_the_cuda_extension_is_not_mistaken_for_the_cpu_one(tmp_path) -> None:
    (tmp_path / "_C_cuda.abi3.so").write_bytes(b"")
    assert cpu._load(tmp_path).path is None


@needs_extension
def test_an_extension_that_lacks_a_kernel_says_so(monkeypatch) -> None:
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda op, key: False)
    backend, reason = backends.choose("gather_tokens", "cpu", "cpu")
    assert backend is None
    assert "lacks kernels of this version" in reason
