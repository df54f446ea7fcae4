"""Fetch: dataset archives are downloaded, verified, then unpacked; the sample is made on the spot.

Nothing is unpacked before its checksum is right, and then into a folder that is put in place whole.
What a person made there is never replaced, and what a fetch made is never deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tasks.caching import locks
from tasks.caching.basics import LadderError, clean, redacted, shortened, shown
from tasks.caching.places import insist_on_name
from tasks.caching.stage import Run
from tasks.images.archives import unpack, what_instead
from tasks.images.download import download, path_or_url
from tasks.images.placing import RESERVED, aside, origin, parted, put, remember


class Archive(NamedTuple):
    """Where a dataset is to be had, and what it must be."""

    url: str
    size: int  # bytes
    md5: str


class Wanted(NamedTuple):
    """The archive that a fetch is to bring."""

    place: str  # as it was given, but for what may be secret
    url: str  # nothing for a file
    path: Path  # of the file
    algorithm: str
    checksum: str
    size: int | None  # bytes, where they are known beforehand


def fetch(
    name: str,
    root: Path,
    source: str | None = None,
    sha256: str | None = None,
    run: Run = Run(),
    tell: Callable[[str], None] = lambda _text: None,
) -> Path:
    """The dataset's folder `root/name`, made unless it is there already.

    `source` is the file or URL of another archive than the known one, `sha256` its checksum.  Where
    they are given and the folder is there, it must come from that very archive.  If it came from
    another one, it makes way, and stays beside as `name.before-TIME`; if it did not come from an
    archive, it is let alone.  `tell` is given what a person should know.
    Raises LadderError, leaving nothing behind, when it cannot be had or is not what it should be.
    """
    insist_on_name(name, "the name")
    if name.casefold() in RESERVED:
        raise LadderError(
            f"'{name}' cannot name a dataset: the data root has a folder of that name"
        )
    target = root / name
    if os.path.lexists(target) and not target.is_dir():
        raise LadderError(f"{target} is there, and no folder; move it away first")
    if target.is_dir() and source is None and sha256 is None:
        return target
    made_here = source is None and DATASETS.get(name) is None
    if made_here and (sha256 or name not in DATASETS):
        known = " and ".join(DATASETS)
        say = f"unknown dataset '{name}', the known ones are {known}"
        say = say if name not in DATASETS else "--sha256 is of an archive"
        raise LadderError(f"{say}: add --from FILE, or --from URL --sha256 HEX")
    wanted = None if made_here else _wanted(name, source, sha256, tell)
    try:
        with _staging(target) as staging:
            if wanted is None:
                _make_sample(staging / "sample").replace(target)
            else:
                _bring(target, wanted, staging, run, tell)
    except OSError as error:
        raise LadderError(f"{target} cannot be made ({error.strerror or error})") from None
    return target


@contextlib.contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder beside the target for one fetch at a time; gone at the end, however that comes."""
    staging = target.parent / f".{target.name}.part"
    staging.mkdir(parents=True, exist_ok=True)
    lock = os.open(staging, os.O_RDONLY)
    try:
        locks.take(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, target.parent)
        if parted(target).exists():  # killed in between
            parted(target).rename(aside(target) if os.path.lexists(target) else target)
        for left_behind in staging.iterdir():  # by a fetch that was killed
            shutil.rmtree(left_behind) if left_behind.is_dir() else left_behind.unlink()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except BlockingIOError:
        raise LadderError(f"{target} is being fetched by another process; wait for it") from None
    finally:
        os.close(lock)


def _make_sample(folder: Path) -> Path:
    """The 1,797 digits of 8 x 8 that scikit-learn ships, a fifth of each class for testing."""
    from sklearn.datasets import load_digits  # here, because it takes a second to import

    digits = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)  # they come as 0 to 16
    generator = np.random.default_rng(0)
    for label in range(10):
        rows = generator.permutation(np.flatnonzero(digits.target == label))
        splits = np.split(rows, [round(len(rows) / 5)])
        for split, chosen in zip(("testing", "training"), splits, strict=True):
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for row in chosen:
                Image.fromarray(images[row]).save(place / f"{row:04d}.png")
    return folder


def _wanted(
    name: str, source: str | None, sha256: str | None, tell: Callable[[str], None]
) -> Wanted:
    """What is to be fetched.  Raises LadderError for what cannot be meant.

    Of a file here that nobody has said a checksum of, it is told, and taken as it is.
    """
    archive = DATASETS.get(name)
    given = source if source is not None else archive.url if archive else ""
    place = shortened(redacted(given))
    path, url = path_or_url(given)
    if sha256 is not None:
        if not re.fullmatch("[0-9a-fA-F]{64}", sha256):
            raise LadderError(f"--sha256 {shown(sha256)}: a sha256 has 64 hexadecimal digits")
        return Wanted(place, url, path, "sha256", sha256.lower(), None)
    if archive:
        return Wanted(place, url, path, "md5", archive.md5, archive.size)
    if url:
        raise LadderError(f"{place}: add --sha256 HEX, the checksum that its maker gives")
    with _opened(path) as file:
        _insist_on_archive(file, place)
        found = hashlib.file_digest(file, "sha256").hexdigest()
    tell(f"{place}: its sha256 is {found}; --sha256 {found} makes sure that it is this file again")
    return Wanted(place, url, path, "sha256", found, None)


def _opened(path: Path) -> BufferedReader:
    """A regular file, open.  Raises LadderError for what is none or cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            what = "a folder: `stepladder run` takes it as it is" if path.is_dir() else "no file"
            raise LadderError(f"{clean(path)} is {what}")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise LadderError(f"{shortened(path)} cannot be read ({why})") from None


def _insist_on_archive(file: BufferedReader, place: str) -> None:
    start = file.read(512)
    file.seek(0)
    if words := what_instead(start):
        raise LadderError(f"{place} is refused: it is {words}")


def _bring(
    target: Path, wanted: Wanted, staging: Path, run: Run, tell: Callable[[str], None]
) -> None:
    """Put an archive's dataset in its place.  Raises LadderError, and leaves what was there."""
    path = wanted.path
    if wanted.url:
        path = staging / "archive"
        download(wanted.url, path, target.name, run)
    with _opened(path) as file:
        digest = _verified(file, wanted)
        if digest == origin(target):
            tell(f"{target} is from this very archive already; nothing to do")
            return
        size = os.fstat(file.fileno()).st_size
        try:
            made, others = unpack(file, size, staging / "made", f"unpacking {target.name}", run)
        except ValueError as error:
            raise LadderError(f"{wanted.place} is refused: {error}") from None
    if others:
        more = f" and {len(others) - 1:,} more files" if len(others) > 1 else ""
        tell(f"left out, as they are not in the dataset's folder: {others[0]}{more}")
    put(made, target, tell)
    remember(target, digest)


def _verified(file: BufferedReader, wanted: Wanted) -> str:
    """The sha256 of a file that is what was wanted.  Raises LadderError for any other."""
    size = os.fstat(file.fileno()).st_size
    if wanted.size is not None and size != wanted.size:
        problem = f"{wanted.place} has {size} bytes, expected {wanted.size}"
    else:
        found = hashlib.file_digest(file, wanted.algorithm).hexdigest()
        problem = f"{wanted.place}: its {wanted.algorithm} is {found}, expected {wanted.checksum}"
        if found == wanted.checksum:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            return digest
    file.seek(0)
    words = what_instead(file.read(512))
    raise LadderError(f"{problem}; {f'it is {words}; ' if words else ''}nothing is kept")


DATASETS: dict[str, Archive | None] = {
    "sample": None,
    "mnist": Archive(  # fast.ai's public bucket of image classification datasets
        "https://s3.amazonaws.com/fast-ai-imageclas/mnist_png.tgz",
        15_683_414,
        "03639f83c4e3d19e0a3a53a8a997c487",
    ),
}
