"""What a person or a schedule starts: the pipeline, prediction, the command line."""
