"""The engine under the chapters: what is stored, what a stage reaches, what would run and why."""
