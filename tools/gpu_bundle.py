"""Packs what benchmarks/gpu.sh needs on a machine with a GPU and no network.

    gpu_bundle.py FOLDER --python 3.12 --wheels flash_colreduce==0.2.2 --sources torch-cluster

FOLDER, and the archive FOLDER.tar.gz, then have

- clasp_kernels: the sources as the last commit has them;
- wheels: for the other machine's Python on x86-64, and the source archives. A requirement that
  cannot be had is named and left out, as gpu.sh leaves out the rows of a missing baseline.

torch, Triton and the rest that gpu.sh names if it is missing have to be on that machine already.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_MIB = 64
# pip takes wheels of exactly the tags that it is told.
PLATFORMS = [
    *(f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"),
]
COMMANDS = """On the machine with the GPU:

    tar -xzf {archive} && cd {folder}/clasp_kernels
    export COMMIT={commit} WHEELS=../wheels
    OUT=../first benchmarks/gpu.sh short
    OUT=../results benchmarks/gpu.sh
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", required=True, help="the version of the other machine's Python")
    parser.add_argument("--wheels", nargs="*", default=[], help="requirements")
    parser.add_argument("--sources", nargs="*", default=[], help="requirements, as source archives")
    arguments = parser.parse_args()
    if not re.fullmatch(r"3\.\d+", arguments.python):
        sys.exit(f"error: GPU_PYTHON must be a version such as 3.12, got {arguments.python!r}.")
    commit = committed()
    folder: Path = arguments.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    sources, wheels = folder / "clasp_kernels", folder / "wheels"
    for path in (sources, wheels):
        path.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", sources], input=archive.stdout, check=True)
    for requirement in arguments.wheels:
        download(requirement, wheels, of_wheels(arguments.python))
    for requirement in arguments.sources:
        # Its metadata may need torch, which an isolated build would download.
        download(requirement, wheels, ["--no-binary=:all:", "--no-build-isolation"])
    packed = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(folder, folder.name)
    check_sizes(folder, packed)
    print(COMMANDS.format(archive=packed.name, folder=folder.name, commit=commit))


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"error: the sources are taken from git, which says: {done.stderr.strip()}")
    return done.stdout


def committed() -> str:
    """The commit that HEAD is. Ends the program if tracked files differ from it."""
    commit = git("rev-parse", "HEAD").strip()
    changes = git("status", "--porcelain").splitlines()
    changed = [line[3:] for line in changes if not line.startswith("??")]
    if changed:
        sys.exit(
            f"error: a bundle has what is committed, and these changes are not: "
            f"{', '.join(changed)}. Commit or stash them."
        )
    if untracked := [line[3:] for line in changes]:
        print(f"Left out, as git does not track them: {', '.join(untracked)}.")
    return commit


def of_wheels(python: str) -> list[str]:
    platforms = [flag for name in PLATFORMS for flag in ("--platform", name)]
    return ["--only-binary=:all:", "--python-version", python, "--implementation=cp", *platforms]


def download(requirement: str, folder: Path, options: list[str]) -> None:
    """With pip, without what it requires. Says so if that fails."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*pip, *options, requirement], capture_output=True, text=True)
    if done.returncode != 0:
        errors = [it for it in done.stderr.splitlines() if it.lower().startswith("error")]
        why = errors[-1] if errors else "no message"
        print(f"Left out: {requirement}, as pip cannot download it ({why}).", flush=True)


def check_sizes(folder: Path, packed: Path) -> None:
    """Prints what everything takes. Ends the program if that is too much."""
    mib = {path: size_of(path) / 2**20 for path in (folder / "clasp_kernels", folder / "wheels")}
    for path in sorted((folder / "wheels").iterdir()):
        print(f"{path.stat().st_size / 2**20:7.2f} MiB  {path.name}")
    for path, size in mib.items():
        print(f"{size:7.2f} MiB  {path}")
    print(f"{size_of(packed) / 2**20:7.2f} MiB  {packed}\n")
    total = sum(mib.values())
    if total > MOST_MIB:
        sys.exit(f"error: the bundle has {total:.0f} MiB, and may have {MOST_MIB}.")


def size_of(path: Path) -> int:
    files = [path] if path.is_file() else [it for it in path.rglob("*") if it.is_file()]
    return sum(it.stat().st_size for it in files)


if __name__ == "__main__":
    main()
