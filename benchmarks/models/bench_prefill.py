"""Whole models: the time to the first token, each token after it, memory, and the ideal of each.

    python benchmarks/models/bench_prefill.py                          # -> benchmarks/results/cpu
    python benchmarks/models/bench_prefill.py --shape qwen2.5-vl-1b  # only this shape's file
    python benchmarks/models/bench_prefill.py --batches 1 --rounds 1   # a try, printed only
    python benchmarks/models/bench_prefill.py --device cuda --shape 7b --out FILE

The models have the shape of LLaVA 1.5 and of Qwen2.5-VL, and random weights (``shapes.py``). Every
round runs each of these once: the unpruned model; pruning to R visual tokens before the language
model; pruning inside it to R on average over its layers; and for both the ideal, the same tower and
layers given as many tokens for free (``ideal.py``). Weights are float32 on a CPU and bfloat16 on a
GPU, where CUDA events take the times.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    benchmarks = Path(__file__).resolve().parent.parent
    sys.path[:1] = [str(benchmarks), str(benchmarks.parent)]
    from models.prefill import main

    main(__doc__.partition("\n")[0])
