"""From figures to what a person sees.

In come what the baselines and the trainings gave; out come report.html, report.md, results.json and
metrics.parquet in a folder of their own, and tables in Prefect.

Read in this order:  `measures`, the numbers, among them which rung is best;  `words`, every
sentence;  `pictures`, every plot;  `page`, the stage that puts them together;  `publish`, where the
report goes and what moved since the run before.
"""
