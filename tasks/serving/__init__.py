"""From a climb's best rung to a model in use: chosen, kept, asked, handed on.

In come a rung's weights and figures; out come a model file with its history, predictions, and
files that run elsewhere.

Read in this order:  `modelfile`, weights and what is to be known of them;  `registry`, a dataset's
models and their history;  `promotion`, when one replaces another;  `candidate`, a run's best rung
against the model in use;  `classifier`, what that says of images;  `export`, files that run
elsewhere;  `card`, what a stranger must know.
"""
