"""The chapters of the pipeline, in reading order; each imports only earlier ones."""
