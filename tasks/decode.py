"""Decode: a class folder -> images[N, H, W] or images[N, H, W, 3] uint8, one row per file.

Small plain PNGs, the bulk of most datasets of digits and icons, are decoded many at a time: each
file is inflated alone, then the filters of one image row are undone across all files at once.
Whatever that does not fully recognise goes to Pillow, after a check of the file's structure,
because Pillow reads damaged files without a word.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from io import BytesIO
from itertools import batched
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from tasks.caching.stage import Run, stage
from tasks.caching.store import LadderError, Stack
from tasks.scan import Files, read_files
