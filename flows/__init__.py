"""What a person or a schedule starts.

Read in this order:  `ladder`, the flow, which is the table of contents of `tasks/`;  `parameters`,
what each of a run's may be;  `datasets`, which one it is about;  `cli`, the commands;  `options`,
what `run` and `plan` may be asked for;  `climb`, what `run` does;  `quick` and `watch`, how a run
sees at a glance that nothing changed;  `server`, a Prefect server for whoever has none;  `console`,
what the terminal shows;  `reports`, those that are already there;  `results`, what stages have
stored, for scripts and notebooks;  `debug`, one stage in this process;  `endings`, how a command
ends.
"""
