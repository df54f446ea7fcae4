"""The chapters of the pipeline, in three wings in reading order, and the engine under them.

`images`: folders of image files become stacks of pixels.  `rungs`: stacks become trained models and
figures.  `report`: figures become what a person sees.  `caching`, which knows none of the three,
remembers what each stage gave.  Each chapter imports only earlier ones.
"""
