"""What each field of a recipe says, in a line: for the form, the command line and RECIPES.md.

Nothing heavy is imported, so that the command line knows them at once.
"""

from __future__ import annotations

FIELDS = {
    "model": "Which rung, or a function in a file of your own: my_models.py:wide",
    "loss": "What training minimises",
    "epochs": "How often training sees each image",
    "batch_size": "Images per step; auto is 256, fewer where that makes too few steps",
    "lr": "Learning rate, at its peak",
    "schedule": "How the learning rate moves from the first step to the last",
    "optimizer": "sgd is written out by hand, adamw is torch's",
    "weight_decay": "Each step shrinks the parameters by lr times this",
    "init": "Initial weights: randn draws linear layers as the post does, default leaves all as "
    "the model's builder made it, and is what models but linear and mlp start from",
    "weights": "Start from the tensors of this file, .safetensors or .pt",
    "label_smoothing": "Share of each label that is spread over all classes",
    "class_weights": "balanced lets each class weigh as much as any other, however few its images",
    "shift": "Move training images by up to this many pixels, at random",
    "keep": "Which epoch's weights to keep: the last, or that of the best accuracy on the images "
    "held out",
    "patience": "Stop when so many epochs have brought no better accuracy on the images held out",
    "flip": "Mirror half of the training images, left and right changed; auto does so where a "
    "short training shows that a mirrored image means the same",
    "augment": "What else is done to training images: cutout blanks a square of each",
    "normalize": "Scale pixels by the training images' own mean and deviation",
    "precision": "Arithmetic of the layers; auto is bfloat16 on a GPU, else float32",
    "seed": "Seed of every random draw",
}
