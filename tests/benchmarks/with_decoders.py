"""Class folders of PNGs to stacks by other decoders, in two processes as in the engine.

Run in an environment of NumPy and what is to be measured: `with_decoders.py FOLDER DECODER`.
Prints seconds, CPU seconds and a digest of all pixels as JSON.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def opencv() -> Callable[[str], Any]:
    """OpenCV's, by libspng or libpng."""
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    return lambda file: cv2.imread(file, cv2.IMREAD_UNCHANGED)


def kornia_rs() -> Callable[[str], Any]:
    """The crate png of image-rs."""
    read = importlib.import_module("kornia_rs").read_image_png_u8
    return lambda file: read(file, "mono")[:, :, 0]


DECODERS = {each.__name__: each for each in (opencv, kornia_rs)}


def decode(task: tuple[str, str]) -> tuple[float, str]:
    """One folder: its CPU seconds and a digest of its stack [N, H, W] uint8."""
    name, folder = task
    start = time.process_time()
    read = DECODERS[name]()
    stack = np.stack([read(os.path.join(folder, file)) for file in sorted(os.listdir(folder))])
    took = time.process_time() - start
    return took, hashlib.sha256(np.ascontiguousarray(stack)).hexdigest()


def main(root: Path, name: str) -> None:
    """Decode all of them once its processes are there and have imported the decoder."""
    tasks = [
        (name, str(each)) for side in ("training", "testing") for each in (root / side).iterdir()
    ]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(decode, tasks[:2], 1)
        start = time.perf_counter()
        done = pool.map(decode, sorted(tasks), 1)
        seconds = time.perf_counter() - start
    digest = hashlib.sha256("".join(each for _, each in done).encode()).hexdigest()
    print(json.dumps({"seconds": seconds, "cpu": sum(cpu for cpu, _ in done), "pixels": digest}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
