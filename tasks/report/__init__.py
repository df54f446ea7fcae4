"""From figures to what a person sees.

In come what the baselines and the trainings gave; out come report.html, report.md, results.json,
metrics.parquet and predictions.parquet in a folder of their own, and tables in Prefect.

Read in this order.  Numbers:  `measures`;  `seeds`, several of which are one rung;  `verdict`,
which rung is best, and whether by luck; `health` of the dataset;  `twins`, near duplicates;
`drift`, what later runs need to tell what is new.
Sentences:  `words`;  `beware`, the warnings.  `findings`, both of them as results.json;
`predictions`, image by image.  What is shown:  `markdown`;  `cases`;  `tiles`;  `plots`;
`templates`;  `graph`, which stage depends on which;  `page`, the stage that puts all together.
Where it goes:  `comparison` with the run before;  `history`, all runs;  `artifacts` in
Prefect;  `publish`.
"""
