"""`python -m benchmarks.quality`, with the modules of this folder and of the test bed in reach."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    ROOT = BENCHMARKS.parent
    sys.path[:1] = [str(BENCHMARKS), str(ROOT / "training" / "tiny_vlm"), str(ROOT)]
    from quality.run import main

    sys.exit(main())
