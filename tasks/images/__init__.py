"""From folders of image files to stacks of pixels.

In comes a dataset's folder, as people have it; out comes, for each class folder,
images[N, H, W] or images[N, H, W, 3] uint8 with a file name and a pixel digest per row.

Read in this order:  `layout`, what kind of folder it is, its splits and classes;  `scan`, what is
in it now, names, stat and digests;  `png`, many small plain PNGs at once;  `pillow`, everything
else, with care;  `decode`, the stage that makes the stack;  `archives` and `fetch`, how a dataset
comes from elsewhere.
"""
