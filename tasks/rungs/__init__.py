"""From stacks of pixels to trained models and their figures: the rungs of the ladder.

In come a stack per class, for training and for testing, and recipes; out come, for each recipe,
weights, a history and what the model said of each testing image.

Read in this order: `baseline`, the average images, which learning must beat.  What is trained:
`convolution`, how maps are multiplied, and `by_hand`, gradients written out, which can wait;
`models`, the rungs;  `rows`, more images
than memory holds;  `building`, how a model is made;  `start`, weights of another training;
`losses`, what training minimises;  `optimizers`, the step and its length;  `augmentations`, what is
done to images.  What is asked for: `limits`, how bounds are said;  `fields`, what each field says;
`recipes`, one model, one loss and how to train them;  `toml`, a recipe file;  `ladders`, which
recipes are climbed.  How it is trained: `split`, images to train on and images to watch;  `course`,
the batches of an epoch;  `recording`, the same steps without Python, for a GPU;  `familiar`, when
an image is unlike all of training;  `calibrate`, how sure a model may be;  `measure`, what it says
of images, at last of the testing ones;  `mirror`, whether they may be mirrored;  `checkpoint`, how
a training goes on;  `train`, the loop.
"""
