"""From folders of image files to stacks of pixels.

In comes a dataset's folder, as people have it; out comes, for each class folder,
images[N, H, W] or images[N, H, W, 3] uint8 with a file name and a pixel digest per row.

Read in this order.  What an image is:  `plain`, many small plain PNGs at once;  `kinds`, what a
file is by its name and its bytes;  `form`, what each image is made into;  `pillow`, one image with
care.  What there is:  `folders`, what lies in one;  `sides`, how those for training and for testing
are called;  `labelled`, classes that no folder says, as a `manifest` does;  `layout`, what kind of
dataset a folder is;  `listings`, what was seen before;  `headers`, sizes and kinds, and the form
that follows.  Pixels:  `png`;  `jpeg`;  `others`, WebP, BMP, GIF and TIFF;  `canvas`, rows of a
stack from bytes.  Which side an image is on:  `likeness`, near duplicates;  `own`, what an image
is known by;  `drawing`, which side that puts it on.  `scan`, what is there now, names, stat and
digests;  `decode`, the stage.
A dataset from elsewhere:  `packed`;  `tar`;  `archives`;  `download`;  `placing`;  `fetch`.
"""
