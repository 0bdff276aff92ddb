"""Real models on public benchmarks, in the harness lmms-eval: `benchmarks/real/run.sh`.

:mod:`real.settings` lists models, tasks and rows, :mod:`real.run` runs them, and :mod:`real.table`
writes the tables.
"""
