"""Whole models: what pruning saves and costs, `python benchmarks/models/bench_prefill.py`."""
