"""`python3 benchmarks/gpu` from anywhere, with the modules of the CPU benchmarks in reach."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    # This folder, which Python has put first, has a module named as one of theirs could be.
    sys.path[:1] = [str(BENCHMARKS), str(BENCHMARKS.parent)]
    from gpu.run import main

    sys.exit(main())
