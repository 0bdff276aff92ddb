"""Measures what each part of CLASP gains on the bundled model: `python -m benchmarks.quality`.

`PLAN.md` says what is measured and what counts as evidence. :mod:`quality.questions` draws the
questions, :mod:`quality.rows` lists the rows, :mod:`quality.answering` has the model answer,
:mod:`quality.run` runs and resumes. :mod:`quality.resampling` and :mod:`quality.verdicts` compute
intervals and verdicts from which answers were right, which :mod:`quality.records` keeps.
:mod:`quality.times` measures how long selecting takes, in a run of its own (`--times`).
:mod:`quality.page` and :mod:`quality.picture` show them. `python benchmarks/readme_tables.py` puts
the tables into the documentation.
"""
