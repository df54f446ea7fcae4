"""What a person or a schedule starts.

Read in this order:

- `ladder`, the flow, which is the table of contents of `tasks/`
- `parameters`, what each of a run's may be; `datasets`, which one it is about
- `cli`, the commands; `options`, what `run` and `plan` may be asked for
- `completions`, what the shell offers
- `climb`, what `run` does
- `quick` and `watch`, how a run sees at a glance that nothing changed
- `server`, a Prefect server for whoever has none; `serve`, what one does every night
- `runners`, who performs the stages; `on_dask`, `on_ray` and `worker`, where others do
- `alarms`, who is told of a night that went wrong; `status`, what is deployed and how it went
- `console`, what the terminal shows
- `reports`, those that are already there; `history`, all of a dataset's; `listing`, all datasets
- `look`, what a folder holds
- `results`, what stages have stored, for scripts; `notebook`, a report in a notebook
- `models`, which is in use; `predict`, what it says of images; `predictions`, the same as a flow
- `export`, one as a file that runs elsewhere
- `debug`, one stage in this process
- `endings`, how a command ends
"""
