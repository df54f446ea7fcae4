"""From figures to what a person sees.

In come what the baselines and the trainings gave; out come report.html, report.md, results.json and
metrics.parquet in a folder of their own, and tables in Prefect.

Read in this order.  Numbers:  `measures`;  `verdict`, which rung is best, and whether by luck;
`health` of the dataset.  Sentences:  `words`;  `beware`, the warnings.  `findings`, both of them as
results.json.  What is shown:  `markdown`;  `tiles`;  `plots`;  `page`, the stage that puts all
together.  Where it goes:  `comparison` with the run before;  `artifacts` in Prefect;  `publish`.
"""
