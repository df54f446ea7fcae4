"""From stacks of pixels to trained models and their figures: the rungs of the ladder.

In come a stack per class, for training and for testing, and recipes; out come, for each recipe,
weights, a history and what the model said of each testing image.

Read in this order:  `baseline`, the average images, which learning must beat;  `models`, the four
rungs;  `building`, how a model is made and what it starts from;  `limits`, what a parameter may
be;  `losses`, what training minimises;  `recipes`, one model, one loss and how to train them;
`train`, the post's loop.
"""
