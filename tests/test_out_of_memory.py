"""Out of memory raises the same error as torch, because programs that retry with a smaller batch
check its message."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
import torch
from interpreter import extension_in, python

from clasp_kernels.backends import chooser, cpu

pytestmark = [
    pytest.mark.skipif(not cpu.load().loaded, reason="the C++ extension is not built"),
    pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited as on Linux"),
]

# Calls that need much memory, with inputs that take none. The first fails to allocate its result.
# The others fail to allocate workspace: on the calling thread, in the loop over a batch, and before
# either.
CALLS = {
    "result": "gather_tokens(torch.zeros(1, 1, 1).expand(2, 8, 2**28), torch.tensor([[0], [1]]))",
    "image": "select_tokens(tokens[:1], salience[:1], 2, 1)",
    "batch": "select_tokens(tokens, salience, 2, 1)",
    "merge": "merge_tokens(tokens, tokens, torch.tensor([[0], [1]]))",
    "mask": "attention_salience(row, row.expand(1, 1, 2**26, 4), key_range=(0, 2), "
    "key_valid=torch.ones(1, 1, dtype=torch.bool).expand(1, 2**26))",
}
CODE = """
import resource, torch
from clasp_kernels import *
torch.set_num_threads(2)
select_tokens(torch.zeros(2, 8, 4), torch.zeros(2, 8), 2, 1)  # starts the threads
tokens = torch.zeros(1, 1, 4).expand(2, 2**25, 4)
salience = torch.zeros(1, 1).expand(2, 2**25)
row = torch.zeros(1, 1, 1, 4)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (50 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name, call in CALLS.items():
    try:
        eval(call)
    except Exception as error:
        print("RAISED", name, type(error).__name__, error)
"""


@functools.cache
def what_is_raised(package: Path = cpu.PACKAGE) -> dict[str, str]:
    """Return what each call raises, all of them in one process."""
    done = python(extension_in(str(package)) + f"CALLS = {CALLS!r}" + CODE)
    assert done.returncode == 0, done.stderr
    _, *told = done.stdout.split("RAISED ")
    return {name: error for name, _, error in (text.partition(" ") for text in told)}


@pytest.mark.parametrize("call", CALLS)
def test_it_reads_as_torch_says_it(call: str) -> None:
    raised = what_is_raised()[call]
    assert raised.startswith("RuntimeError ")
    assert "DefaultCPUAllocator: can't allocate memory" in raised


def test_a_result_is_reported_in_full_where_torch_tells() -> None:
    told = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
    assert ("you tried to allocate 2147483648 bytes" in what_is_raised()["result"]) is told


def test_a_torch_that_does_not_tell(tmp_path: Path) -> None:
    """torch before 2.13 lacks the function that the extension reads the message with."""
    library = cpu.find(cpu.PACKAGE, "_C")
    assert library is not None
    ask = b"torch_exception_get_what_without_backtrace"
    content = library.read_bytes()
    assert ask in content
    (tmp_path / library.name).write_bytes(content.replace(ask, ask[::-1]))
    assert what_is_raised(tmp_path)["result"].startswith(
        "RuntimeError DefaultCPUAllocator: can't allocate memory. There is none for a tensor of "
        "[2, 1, 268435456] (assumed cause: torch before 2.13 prints"
    )


def test_no_error_names_the_machine_that_built_the_extension() -> None:
    with pytest.raises(
        RuntimeError, match=r"csrc/cpu/arguments\.h:\d+, indices must lie in"
    ) as raised:
        torch.ops.clasp_kernels.gather_tokens(torch.zeros(1, 2, 3), torch.tensor([[5]]))
    root = str(cpu.PACKAGE.parent)
    assert root not in str(raised.value)
    library = cpu.find(cpu.PACKAGE, "_C")
    assert library is not None
    content = library.read_bytes()
    for folder in (root, str(Path(torch.__file__).parent)):
        assert folder.encode() not in content


def test_the_cuda_kernels_raise_the_error_of_torch() -> None:
    def fail(message: str) -> None:
        raise RuntimeError(message)

    call = chooser._with_torch_error(fail)
    with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory\. Tried"):
        call("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(RuntimeError, match=r"^another$") as raised:
        call("another")
    assert type(raised.value) is RuntimeError
    assert chooser._with_torch_error(len)([1]) == 1
