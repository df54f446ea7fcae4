"""From stacks of pixels to trained models and their figures: the rungs of the ladder.

In come a stack per class, for training and for testing, and recipes; out come, for each recipe,
weights, a history and what the model said of each testing image.

Read in this order:  `baseline`, the average images, which learning must beat.  What is trained:
`convolution`, how maps are multiplied, which can wait;  `models`, the four rungs;  `building`, how
a model is made and what it starts from;  `losses`, what training minimises.  What is asked for:
`limits`, how bounds are said;  `recipes`, one model, one loss and how to train them;  `toml`, a
recipe file;  `ladders`, which recipes are climbed.  How it is trained:  `split`, images to train on
and images to watch;  `optimizers`, the step and its length;  `course`, the batches of an epoch;
`recording`, the same steps without Python, for a GPU;  `measure`, what a model says of images;
`checkpoint`, how a training goes on;  `train`, the loop.
"""
