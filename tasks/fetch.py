"""Fetch: dataset archives are downloaded, verified, then unpacked; the sample is made on the spot.

An archive is hostile until proven otherwise: nothing is unpacked before its checksum is right, and
then only regular files with plain names are written, into a folder that is put in place whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import http.client
import os
import re
import shutil
import ssl
import stat
import struct
import unicodedata
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import unquote, urlparse

import numpy as np
from PIL import Image

from tasks.caching.basics import LadderError
from tasks.caching.stage import Run
from tasks.scan import layout

TIMEOUT = 30  # seconds without a byte
RESERVED = ("cache", "models", "reports")  # the data root's other folders
MAX_FILES, MAX_DEPTH = 2_000_000, 8
MAX_FILE = 256_000_000  # bytes of one file
MAX_RATIO = 200  # bytes unpacked for one packed: images hardly shrink, so beyond is a bomb
MAX_NAME = 65_536  # bytes of a long name or an extended header
BROKEN_LINE = (
    *(urllib.error.URLError, http.client.HTTPException, ssl.SSLError),
    *(TimeoutError, ConnectionError, ValueError),
)
BROKEN_ARCHIVE = (
    *(gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, struct.error),
    *(ValueError, EOFError, RuntimeError),
)


class Archive(NamedTuple):
    """Where a dataset is to be had, and what it must be."""

    url: str
    size: int  # bytes
    md5: str


def fetch(
    name: str, root: Path, source: str | None = None, sha256: str | None = None, run: Run = Run()
) -> Path:
    """The dataset's folder `root/name`, made unless it is there already.

    `source` is the file or URL of another archive than the known one, `sha256` its checksum.
    Raises LadderError, leaving nothing behind, when it cannot be had or is not what it should be.
    """
    if name in RESERVED or not re.fullmatch(r"\w[\w .+-]*", name):
        raise LadderError(f"{name!r} cannot name a dataset; choose letters, digits, - and _")
    target = root / name
    if target.is_dir():
        return target
    if source is None and name not in DATASETS:
        known = " and ".join(DATASETS)
        raise LadderError(f"{name} is none of {known}: add --from FILE_OR_URL --sha256 HEX")
    archive = DATASETS.get(name)
    try:
        with _staging(target) as staging:
            if source is None and archive is None:
                made = _make_sample(staging / "sample")
            else:
                made = _take(name, archive, source, sha256, staging, run)
            made.replace(target)
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
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
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


def _take(
    name: str,
    archive: Archive | None,
    source: str | None,
    sha256: str | None,
    staging: Path,
    run: Run,
) -> Path:
    """The dataset folder out of an archive, unpacked within the staging folder."""
    place = source or (archive.url if archive else "")
    path = _local(place)
    algorithm, checksum = _expected(place, path, archive, sha256)
    if path is None:
        path = staging / "archive"
        _download(place, path, name, run)
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed just below
    except OSError as error:
        raise LadderError(f"{path} cannot be read ({error.strerror})") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        if algorithm == "md5" and archive and size != archive.size:
            raise LadderError(f"{place} has {size} bytes, expected {archive.size}; nothing is kept")
        found = hashlib.file_digest(file, algorithm).hexdigest()
        if found != checksum:
            raise LadderError(
                f"{place}: its {algorithm} is {found}, expected {checksum}; nothing is kept"
            )
        file.seek(0)
        try:
            return _unpack(file, size, staging / "unpacked", f"unpacking {name}", run)
        except BROKEN_ARCHIVE as error:
            raise LadderError(f"{place} is refused: {error}") from None


def _local(source: str) -> Path | None:
    parsed = urlparse(source)
    if parsed.scheme in ("http", "https"):
        return None
    return Path(unquote(parsed.path) if parsed.scheme == "file" else source).expanduser()


def _expected(
    place: str, path: Path | None, archive: Archive | None, sha256: str | None
) -> tuple[str, str]:
    """The algorithm and the checksum that the archive must have."""
    if sha256 is not None:
        if not re.fullmatch("[0-9a-fA-F]{64}", sha256):
            raise LadderError(f"--sha256 {sha256}: a sha256 has 64 hexadecimal digits")
        return "sha256", sha256.lower()
    if archive:
        return "md5", archive.md5
    if path is None or not path.is_file():
        raise LadderError(f"{place}: add --sha256 HEX, the checksum that its maker gives")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    raise LadderError(f"{place}: if you trust this file, add --sha256 {found}")


def _download(url: str, path: Path, name: str, run: Run) -> None:
    done = 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response, open(path, "wb") as file:
            total = int(response.headers.get("Content-Length") or 0)
            while block := response.read(1 << 18):
                file.write(block)
                done += len(block)
                run.progress(done, total, f"downloading {name}")
        problem = f"it broke off after {done} of {total} bytes" if done < total else ""
    except urllib.error.HTTPError as error:
        problem = f"the server says {error.code} {error.reason}"
    except BROKEN_LINE as error:
        problem = f"no network? {getattr(error, 'reason', error)}"
    if problem:
        raise LadderError(
            f"{url} cannot be downloaded ({problem}); take it from elsewhere with "
            f"`stepladder fetch {name} --from FILE_OR_URL --sha256 HEX`"
        )


def _unpack(file: IO[bytes], size: int, folder: Path, note: str, run: Run) -> Path:
    """The dataset folder within an archive of `size` bytes; raises ValueError for a hostile one."""
    kind = file.read(4)
    file.seek(0)
    if kind == b"PK\3\4":
        members = _zip_members(file)
    else:
        members = _tar_members(gzip.GzipFile(fileobj=file) if kind[:2] == b"\x1f\x8b" else file)
    folder.mkdir()
    taken: dict[str, str] = {}
    left = MAX_RATIO * size
    for count, (name, data) in enumerate(members):
        left -= len(data)
        if count == MAX_FILES or left < 0:
            raise ValueError("it unpacks to far more than it should")
        parts = _plain_parts(name)
        if parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts):
            continue
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if taken.get(_folded(parent)) != f"{parent}/":
                _claim(taken, parent, f"{parent}/")
                (folder / parent).mkdir()
        path = "/".join(parts)
        _claim(taken, path, path)
        with open(f"{folder}/{path}", "xb") as written:
            written.write(data)
        if count % 1000 == 0:
            run.progress(file.tell(), size, note)
    run.progress(size, size, note)

    inside = list(folder.iterdir())
    dataset = inside[0] if len(inside) == 1 and inside[0].is_dir() else folder
    try:
        layout(dataset)
    except LadderError as error:
        raise ValueError(str(error).replace(str(dataset), "its content")) from None
    return dataset


def _claim(taken: dict[str, str], path: str, what: str) -> None:
    """Take a path; ValueError where a file system that ignores case or accents would clash."""
    if _folded(path) in taken:
        raise ValueError(f"{path!r} is there twice, or differs in case or accents alone")
    taken[_folded(path)] = what


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _plain_parts(name: str) -> list[str]:
    """The parts of a relative path that stays where it is unpacked; ValueError for any other."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if (
        name.startswith("/")
        or re.match("[A-Za-z]:", name)
        or ".." in parts
        or not 0 < len(parts) <= MAX_DEPTH
        or any(len(os.fsencode(part)) > 255 for part in parts)
        or not all(c.isprintable() and c != "\\" for c in name)
    ):
        raise ValueError(f"{name[:200]!r} is no plain relative name")
    return parts


def _tar_members(file: IO[bytes] | gzip.GzipFile) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each regular file of a tar archive (POSIX.1-2001 ustar and pax, GNU names).

    Folders are passed over; anything else, links and devices above all, raises ValueError.
    """
    extended: dict[str, str] = {}
    for _ in range(3 * MAX_FILES):
        header = _exactly(file, 512)
        if header == bytes(512):
            file.read(MAX_NAME)  # the padding; at the end gzip checks what it gave
            return
        if sum(header) - sum(header[148:156]) + 8 * ord(" ") != _number(header[148:156]):
            raise ValueError("a header of the tar archive is damaged")
        kind, size = header[156:157], _number(header[124:136])
        if kind in (b"x", b"g", b"L") and size <= MAX_NAME:
            body = _exactly(file, size + -size % 512)[:size]
            more = {"path": _text(body)} if kind == b"L" else _pax(body)
            if kind == b"g" and more.keys() & {"path", "size"}:
                raise ValueError("its global header renames every file")
            extended |= more if kind != b"g" else {}
            continue
        name = _text(header[:100])
        if header[257:263] == b"ustar\0" and header[345]:
            name = f"{_text(header[345:500])}/{name}"
        name, size = extended.get("path", name), int(extended.get("size", size))
        is_folder = kind == b"5" or (kind == b"\0" and name.endswith("/"))
        is_sparse = any(key.startswith("GNU.sparse") for key in extended)
        if not is_folder and (kind not in (b"0", b"\0") or is_sparse):
            raise ValueError(f"{name!r} is neither a regular file nor a folder")
        if not 0 <= size <= (0 if is_folder else MAX_FILE):
            raise ValueError(f"{name!r} is too large")
        extended = {}
        if not is_folder:
            yield name, _exactly(file, size + -size % 512)[:size]
    raise ValueError("it has too many members")


def _exactly(file: IO[bytes] | gzip.GzipFile, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ValueError("it ends too early")
    return data


def _number(field: bytes) -> int:
    """A number of a tar header: octal text, or big-endian with the first bit set."""
    if field[0] & 0x80:
        return int.from_bytes(field) - (0x80 << 8 * (len(field) - 1))
    return int(field.strip(b" \0") or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode()


def _pax(body: bytes) -> dict[str, str]:
    """The records of an extended header, each of them "LENGTH KEY=VALUE" and a line feed."""
    records = {}
    while body:
        digits = body.partition(b" ")[0]
        length = int(digits)
        if not len(digits) < length <= len(body):
            raise ValueError("an extended header is damaged")
        key, _, value = body[len(digits) + 1 : length - 1].partition(b"=")
        records[key.decode()] = value.decode(errors="replace")
        body = body[length:]
    return records


def _zip_members(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each regular file of a zip archive; anything else raises ValueError."""
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir():
                continue
            if kind not in (0, stat.S_IFREG) or info.orig_filename != info.filename:
                raise ValueError(f"{info.filename!r} is neither a regular file nor a folder")
            if info.file_size > MAX_FILE:
                raise ValueError(f"{info.filename!r} is too large")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{info.filename!r} is packed in an unusual way")
            yield info.filename, archive.read(info)


DATASETS: dict[str, Archive | None] = {
    "sample": None,
    "mnist": Archive(  # fast.ai's public bucket of image classification datasets
        "https://s3.amazonaws.com/fast-ai-imageclas/mnist_png.tgz",
        15_683_414,
        "03639f83c4e3d19e0a3a53a8a997c487",
    ),
}
