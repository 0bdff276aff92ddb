"""Real models on public benchmarks, in the harness lmms-eval: `benchmarks/real/run.sh`.

What is run is in :mod:`real.settings`, how in :mod:`real.run`, and what comes out in
:mod:`real.table`.
"""
