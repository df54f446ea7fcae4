"""From folders of image files to stacks of pixels.

In comes a dataset's folder, as people have it; out comes, for each class folder,
images[N, H, W] or images[N, H, W, 3] uint8 with a file name and a pixel digest per row.

Read in this order.  What there is:  `folders`, what lies in one;  `layout`, what kind of dataset
it is;  `listings`, what was seen before;  `scan`, what is there now, names, stat and digests.
Pixels:  `plain`, many small plain PNGs at once;  `pillow`, one image with care;  `png`;  `jpeg`;
`kinds`, what a file is if not those;  `canvas`, rows of a stack from bytes;  `decode`, the stage.
A dataset from elsewhere:  `packed`;  `tar`;  `archives`;  `download`;  `placing`;  `fetch`.
"""
