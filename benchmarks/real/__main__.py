"""`python3 benchmarks/real` from anywhere, with this folder's modules in reach."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:1] = [str(BENCHMARKS), str(BENCHMARKS.parent)]
    from real.run import main

    sys.exit(main())
