"""A dataset arrives whole and as promised, or not at all."""

from __future__ import annotations

import base64
import bz2
import contextlib
import gzip
import hashlib
import http.server
import io
import lzma
import os
import shutil
import tarfile
import threading
import unicodedata
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tasks.caching.basics import LadderError
from tasks.caching.stage import Run
from tasks.images import archives, placing
from tasks.images import fetch as chapter
from tasks.images import packed as packed_chapter
from tasks.images import tar as tar_chapter
from tasks.images.fetch import Archive, fetch

DATASET = {
    f"{split}/{label}/{number}.png": f"{split}{label}{number}".encode()
    for split in ("training", "testing")
    for label in ("cat", "dog")
    for number in range(2)
}


IN_FOLDERS = {f"a/b/c/{name}": data for name, data in DATASET.items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def member(name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, **more: object) -> tuple:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def tar(*extra: tuple, files: dict[str, bytes] = DATASET, mode: str = "w:gz", **options) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, **options) as archive:
        for info, data in [*(member(*item) for item in files.items()), *extra]:
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def zipped(files: dict[str | zipfile.ZipInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def take(data: bytes, root: Path, run: Run | None = None, said: list[str] | None = None) -> Path:
    """Fetch from a local file that holds these bytes, with their right checksum."""
    root.mkdir(exist_ok=True)
    file = root.parent / "archive.bin"
    file.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    tell = [].append if said is None else said.append
    return fetch("pets", root, str(file), sha256, run or Run(), tell)


def left(root: Path) -> list[str]:
    """What lies under the data root, but for the cache, sorted."""
    return sorted({*os.listdir(root)} - {"cache"})


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# The sample


def test_the_sample_is_the_1797_digits_split_by_class(root: Path) -> None:
    folder = fetch("sample", root)
    assert folder == root / "sample"
    assert os.listdir(root) == ["sample"]
    digits = load_digits()
    expected = np.array([[round(v * 255 / 16) for v in row] for row in digits.data])
    seen = []
    for path in folder.rglob("*.png"):
        row, label = int(path.stem), int(path.parent.name)
        assert label == digits.target[row]
        image = Image.open(path)
        assert image.mode == "L"
        assert np.asarray(image).ravel().tolist() == expected[row].tolist()
        seen.append(row)
    assert sorted(seen) == list(range(1797))
    for label in range(10):
        testing = len(os.listdir(folder / "testing" / str(label)))
        assert testing == round(np.sum(digits.target == label) / 5)


def test_the_sample_is_the_same_everywhere(root: Path, tmp_path: Path) -> None:
    assert content(fetch("sample", root)) == content(fetch("sample", tmp_path / "other"))


def test_what_is_there_is_returned_untouched(root: Path) -> None:
    (root / "sample").mkdir(parents=True)
    assert fetch("sample", root) == root / "sample"
    assert content(root) == {}


# Archives that are welcome


@pytest.mark.parametrize(
    "data",
    [
        tar(),
        tar(mode="w"),
        tar(format=tarfile.GNU_FORMAT),
        tar(format=tarfile.USTAR_FORMAT),
        tar(format=tarfile.PAX_FORMAT, pax_headers={"comment": "a" * 999}),
        tar(files={f"pets/{name}": data for name, data in DATASET.items()}),
        tar(files={f"./pets/{name}": data for name, data in DATASET.items()}),
        tar(member("training/", b"", tarfile.DIRTYPE), member("testing", b"", tarfile.DIRTYPE)),
        tar(member("._training"), member("__MACOSX/training/._cat"), member("training/.DS_Store")),
        zipped(DATASET),
        zipped({f"pets/{name}": data for name, data in DATASET.items()} | {"pets/empty/": b""}),
        tar(mode="w:bz2"),
        tar(mode="w:xz"),
        b"".join(bz2.compress(part) for part in (tar(mode="w")[:700], tar(mode="w")[700:])),
        b"".join(lzma.compress(p) + bytes(8) for p in (tar(mode="w")[:700], tar(mode="w")[700:])),
        tar(member("README.md"), member("LICENSE"), member(".DS_Store"), files=IN_FOLDERS),
        zipped({**IN_FOLDERS, "a/README": b"", "a/b/docs/x.txt": b"", "__MACOSX/a/._b": b""}),
        zipped({**IN_FOLDERS, "a/b/__MACOSX/training/cat/._0.png": b"", "a/old/train/x.png": b""}),
        tar(files={f"{'deep/' * 29}{name}": data for name, data in DATASET.items()}),
        tar(format=tarfile.PAX_FORMAT, pax_headers={"SCHILY.xattr.a": "a" * 99_999}),
        tar(member("backup of 2026", b"", b"V")),
    ],
    ids=["tar.gz", "tar", "GNU", "ustar", "pax", "one folder", "./", "folders", "macOS", "zip",
         "zip, one folder", "tar.bz2", "tar.xz", "two bz2 streams", "two xz streams", "README",
         "zip, README inside", "zip, other folders", "deep", "large attributes", "label"],
)  # fmt: skip
def test_an_archive_of_a_dataset_is_unpacked(data: bytes, root: Path) -> None:
    assert take(data, root) == root / "pets"
    assert content(root / "pets") == DATASET
    assert left(root) == ["pets"]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_foreign_names_arrive(kind: int, root: Path) -> None:
    long = "long " * 18 if kind == tarfile.USTAR_FORMAT else "längere 猫 " * 12
    files = {**DATASET, f"training/cat/{long}.png": b"long", "training/dog/é, [1].PNG": b"odd"}
    files["training/dog/Screenshot at 1.00\u202fPM \u200f\N{WOMAN}\u200d\N{ROCKET}.png"] = b"macOS"
    take(tar(files=files, format=kind), root)
    assert content(root / "pets") == files


def test_a_file_url_is_taken_too(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "with space.tgz"
    file.write_bytes(tar())
    fetch("pets", root, file.as_uri(), hashlib.sha256(tar()).hexdigest().upper())
    assert content(root / "pets") == DATASET


def test_a_known_archive_from_elsewhere_needs_no_sha256(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tar()
    known = Archive("https://example.invalid/x", len(data), hashlib.md5(data).hexdigest())
    monkeypatch.setitem(chapter.DATASETS, "mnist", known)
    (tmp_path / "x.tgz").write_bytes(data)
    assert content(fetch("mnist", root, str(tmp_path / "x.tgz"))) == DATASET


def test_all_of_mnist_is_unpacked(mnist: Path) -> None:
    assert sorted(os.listdir(mnist)) == ["testing", "training"]
    assert sorted(os.listdir(mnist / "training")) == [str(label) for label in range(10)]
    assert sum(len(files) for _, _, files in os.walk(mnist / "training")) == 60_000
    assert sum(len(files) for _, _, files in os.walk(mnist / "testing")) == 10_000
    assert left(mnist.parent) == ["mnist"]


# Archives that are not


def with_header(data: bytes, position: int, value: bytes) -> bytes:
    """The first header of a tar archive with some bytes replaced and its checksum mended."""
    header = bytearray(data[:512])
    header[position : position + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


def raw_pax(body: bytes) -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(body)
    return info.tobuf() + body + bytes(-len(body) % 512) + tar(mode="w")


def zip_link() -> bytes:
    info = zipfile.ZipInfo("training/cat/link.png")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return zipped({**DATASET, info: b"/etc/passwd"})


def zip_that_lies() -> bytes:
    """A zip archive whose directory gives a member's CRC wrongly."""
    data = bytearray(zipped(DATASET))
    data[data.index(b"PK\1\2") + 16] ^= 1
    return bytes(data)


TAR = tar(mode="w")
HOSTILE = {
    "absolute name": tar(member("/tmp/evil")),
    "parent": tar(member("../evil")),
    "parent inside": tar(member("training/../../evil")),
    "parent by a long name": tar(member("a/" * 60 + "../" * 61 + "x"), format=tarfile.GNU_FORMAT),
    "parent by a pax name": tar(member("ok", pax_headers={"path": "../evil"})),
    "backslash": tar(member("..\\evil")),
    "drive": tar(member("C:evil")),
    "control character": tar(member("training/cat/a\nb.png")),
    "right-to-left override": tar(member("training/cat/a\u202egnp.exe")),
    "empty name": tar(member(".")),
    "too deep": tar(member("a/" * 32 + "i.png")),
    "too long a part": tar(member("training/" + "a" * 256)),
    "name that is not UTF-8": with_header(TAR, 0, b"\xff\xfe"),
    "symbolic link": tar(member("training/l.png", b"", tarfile.SYMTYPE, linkname="/etc/passwd")),
    "link, then a file through it": tar(
        member("training/l", b"", tarfile.SYMTYPE, linkname="/tmp"), member("training/l/evil")),
    "hard link": tar(member("training/l.png", b"", tarfile.LNKTYPE, linkname="../../secret")),
    "character device": tar(member("training/cat/null", b"", tarfile.CHRTYPE)),
    "block device": tar(member("training/cat/disk", b"", tarfile.BLKTYPE)),
    "pipe": tar(member("training/cat/pipe.png", b"", tarfile.FIFOTYPE)),
    "sparse file": tar(member("training/cat/s.png", pax_headers={"GNU.sparse.size": "999"})),
    "global name": tar(pax_headers={"path": "../evil"}, format=tarfile.PAX_FORMAT),
    "the same file twice": tar(member("training/cat/0.png", b"other")),
    "the same but for case": tar(member("training/cat/0.PNG")),
    "a folder but for case": tar(member("training/CAT/9.png")),
    "the same but for composition": tar(
        member(unicodedata.normalize("NFC", "training/cat/é.png")),
        member(unicodedata.normalize("NFD", "training/cat/é.png"))),
    "a file as folder": tar(member("training/cat/0.png/x.png")),
    "a folder as file": tar(member("training/cat")),
    "a bomb": tar(member("training/cat/9.png", bytes(3_000_000))),
    "a size beyond any image": with_header(TAR, 124, b"\x80" + (2**40).to_bytes(11)),
    "a negative size": with_header(TAR, 124, b"\xff" * 12),
    "a size that is no number": with_header(TAR, 124, b"zzzzzzzzzzz\0"),
    "a huge pax header": with_header(raw_pax(b"9 a=bcde\n"), 124, b"77777777777\0"),
    "pax records of no length": raw_pax(b"0 a=b\n"),
    "pax records without value": raw_pax(b"\n"),
    "pax records beyond their end": raw_pax(b"99 a=b\n"),
    "a pax size that is no number": raw_pax(b"10 size=x\n"),
    "a pax size below zero": raw_pax(b"11 size=-9\n"),
    "wrong header checksum": TAR[:5] + b"?" + TAR[6:],
    "cut": tar()[: len(tar()) // 2],
    "tar cut between members": TAR[:1024],
    "empty": b"",
    "text": b"<html>not found</html>" * 100,
    "gzip of text": gzip.compress(b"hello " * 200),
    "gzip, damaged": gzip.compress(TAR)[:-8] + b"abcdefgh",
    "zip, damaged": zipped(DATASET)[:-30],
    "zip with a wrong CRC": zip_that_lies(),
    "zip with a parent": zipped({**DATASET, "../evil": b"x"}),
    "zip with an absolute name": zipped({**DATASET, "/tmp/evil": b"x"}),
    "zip with a link": zip_link(),
    "zip with a bomb": zipped({**DATASET, "training/cat/9.png": bytes(3_000_000)}),
    "zip with two of a name": zipped({**DATASET, "training/Cat/0.png": b"x"}),
    "no dataset": tar(files={"a.png": b"x", "b/c.png": b"y"}),
    "training alone": tar(files={"d/training/cat/0.png": b"x"}),
    "classes that differ": tar(member("testing/emu/0.png")),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_leaves_nothing_behind(name: str, root: Path, tmp_path: Path) -> None:
    """Its checksum is right, and still not one byte of it stays, inside or outside."""
    with pytest.raises(LadderError, match=r"archive\.bin is refused: ") as caught:
        take(HOSTILE[name], root)
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == {"archive.bin": HOSTILE[name]}
    assert os.listdir(root) == []


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (HOSTILE["parent"], "'../evil' is no plain relative name"),
        (HOSTILE["too deep"], "i.png' lies in over 32 folders"),
        (HOSTILE["too long a part"], "aa' has a name of over 255 bytes"),
        (HOSTILE["right-to-left override"], r"a.u202egnp.exe' holds characters that no name shoul"),
        (HOSTILE["a huge pax header"], "it tells more than 4,000,000 bytes of one file's attribut"),
        (
            tar(member("training/l", b"", tarfile.SYMTYPE, linkname="c" * 200), mode="w:gz",
                format=tarfile.GNU_FORMAT),
            "'training/l' is a link or a device",
        ),
    ],
)  # fmt: skip
def test_the_reason_given_for_a_refusal_is_true(data: bytes, says: str, root: Path) -> None:
    with pytest.raises(LadderError, match=says):
        take(data, root)


XZ, BZ2 = tar(mode="w:xz"), tar(mode="w:bz2")
INSTEAD = {
    "it is empty": b"",
    "it is a web page, perhaps of a login or an error": b"\xef\xbb\xbf\n <!DOCTYPE html><html>",
    "it is an XML file, perhaps of a login": b"<?xml version='1.0'?><Error>AccessDenied",
    "it is JSON text, perhaps of a login or an error, instead": b'{"message": "Not Found"}',
    "it is a text": "Größe, 猫".encode() * 99,
    "it is a PNG; wanted": b"\x89PNG\r\n\x1a\n" + bytes(99),
    "it is a JPEG; wanted": b"\xff\xd8\xff\xe0" + bytes(99),
    "it is a Git LFS pointer, not the file itself": b"version https://git-lfs.github.com/spec/v1\n",
    "it is packed with Zstandard; wanted is a dataset as .zip": b"\x28\xb5\x2f\xfd" + bytes(99),
    "it is a 7z archive": b"7z\xbc\xaf\x27\x1c" + bytes(99),
    "it is a RAR archive": b"Rar!\x1a\x07\x00" + bytes(99),
    "it is a Parquet file": b"PAR1" + bytes(99),
    "it is a NumPy array": b"\x93NUMPY\x01" + bytes(99),
    "it is an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(99),
    "it is an idx file": b"\0\0\x08\x03" + bytes(999),
    "it is of an unknown kind": bytes(range(128, 256)) * 9,
    "with gzip is an idx file": gzip.compress(b"\0\0\x08\x03" + bytes(999)),
    "with gzip is packed with gzip": gzip.compress(tar()),
    "with bzip2 is a text": bz2.compress(b"hello " * 200),
    "with xz is empty": lzma.compress(b""),
    "it holds no files": tar(files={}),
    "it holds no files; wanted is": zipped({}),
    "it ends too early: cut off": gzip.compress(tar(mode="w"))[:-20],
    "it ends too early": XZ[:-200],
    "it ends too early: cut": BZ2[:-50],
    "it is damaged, or was cut off": zipped(DATASET)[:-30],
    r"it is damaged \(Corrupt": XZ[:90] + b"\xff\xff\xff\xff" + XZ[94:],
    r"it is damaged \(Invalid data": BZ2[:60] + b"\xff\xff\xff\xff" + BZ2[64:],
    r"it is damaged \(Input format": XZ + b"rest",
    "'training/cat/0.png' is locked with a password": zipped(DATASET)[:-1000] + zipped(
        DATASET).replace(b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0\1\0")[-1000:],
}  # fmt: skip


@pytest.mark.parametrize("says", INSTEAD)
def test_what_is_no_archive_is_said_to_be_what_it_is(says: str, root: Path) -> None:
    """In one line, with what is wanted; and nothing stays."""
    with pytest.raises(LadderError, match=says) as caught:
        take(INSTEAD[says], root)
    assert str(caught.value).startswith(f"{root.parent / 'archive.bin'} is refused: ")
    assert "\n" not in str(caught.value)
    assert os.listdir(root) == []


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["img/a.png", "img/b.png", "labels.csv"],
         "it holds no dataset: wanted are training/CLASS/.*found: img/, labels.csv"),
        (["x/y/cat/0.png", "x/y/dog/0.txt"], "found: cat/, dog/"),
        (["x/train/cat/0.png", "x/README"], "one class, cat.*found: README, train/"),
        (["w/training/cat/0.png", "w/testing/emu/0.png", "w/testing/cat/0.png", "z/a"],
         "training lacks the class emu.*found: testing/, training/"),
        ([f"{i}.png" for i in range(9)], r"found: 0.png, 1.png, 2.png, 3.png, 4.png and 4 more"),
        ([f"{s}/{name}" for s in ("new", "old") for name in DATASET],
         r"it holds 2 datasets \(new, old\); pack one"),
        (["x_train.npy", "x_test.npy"], "found: x_test.npy, x_train.npy"),
    ],
)  # fmt: skip
def test_an_archive_laid_out_otherwise_says_what_was_found(
    names: list[str], says: str, root: Path
) -> None:
    """Beside what is wanted, in one line that names no folder of ours."""
    with pytest.raises(LadderError, match=says) as caught:
        take(zipped(dict.fromkeys(names, b"x")), root)
    assert "\n" not in str(caught.value)
    assert ".part" not in str(caught.value)
    assert os.listdir(root) == []


@pytest.mark.parametrize("split", ["", "train/"])
def test_an_archive_may_hold_class_folders_without_splits(split: str, root: Path) -> None:
    names = [f"x/{split}cat/a/0.png", f"x/{split}dog/0.png"]
    place = take(zipped(dict.fromkeys(names, b"x")), root)
    assert sorted(os.listdir(place)) == ["cat", "dog"]


def test_what_lies_beside_the_dataset_is_told(root: Path) -> None:
    said: list[str] = []
    take(zipped({"README": b"", "docs/a.txt": b"", **IN_FOLDERS}), root, said=said)
    assert said == ["left out, as they are not in the dataset's folder: README and 1 more files"]


def test_xz_cannot_take_all_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header may ask for a dictionary of 4 GiB."""
    monkeypatch.setattr(packed_chapter, "MAX_MEMORY", 1 << 20)
    with pytest.raises(LadderError, match="unpacking it takes over 1 MiB of memory"):
        take(XZ, root)
    assert os.listdir(root) == []


# A dataset of that name is there already

OTHER = tar(files={name: data + b" new" for name, data in DATASET.items()})


def test_the_same_archive_again_changes_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even what a person has added since; it is not unpacked again, nor is that silent."""
    said: list[str] = []
    data = tar()
    take(data, root)
    (root / "pets/training/cat/mine.png").write_bytes(b"mine")
    monkeypatch.setattr(chapter, "unpack", None)
    take(data, root, said=said)
    assert content(root / "pets") == {**DATASET, "training/cat/mine.png": b"mine"}
    assert said == [f"{root / 'pets'} is from this very archive already; nothing to do"]


def test_another_archive_takes_its_place_and_nothing_is_lost(root: Path) -> None:
    """What was there stays beside it, with all that a person changed in it; that is said."""
    said: list[str] = []
    take(tar(), root)
    (root / "pets/training/cat/mine.png").write_bytes(b"mine")
    take(OTHER, root, said=said)
    assert content(root / "pets") == {name: data + b" new" for name, data in DATASET.items()}
    before, now = sorted(left(root), reverse=True)
    assert (now, before[:12]) == ("pets", "pets.before-")
    assert content(root / before) == {**DATASET, "training/cat/mine.png": b"mine"}
    assert said == [
        f"{root / 'pets'} is new; what was there is in {root / before}: remove it when you need it "
        "no more"
    ]
    take(OTHER, root, said=said)
    assert "nothing to do" in said[-1]


def test_a_folder_made_by_hand_is_let_alone(root: Path) -> None:
    """Also where one from an archive was before; unless it holds just what the archive does."""
    for path, data in DATASET.items():
        (root / "pets" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "pets" / path).write_bytes(data)
    take(tar(), root)  # the same images: from now on it counts as fetched
    (root / "pets").rename(root / "gone")
    (root / "pets/training").mkdir(parents=True)
    (root / "pets/training/mine.png").write_bytes(b"mine")
    for data in (tar(), OTHER):
        with pytest.raises(LadderError, match=r"is there already.*another name.*mv .*/pets "):
            take(data, root)
        assert content(root / "pets") == {"training/mine.png": b"mine"}
        assert left(root) == ["gone", "pets"]
    (root / "cats").write_text("a file")
    with pytest.raises(LadderError, match="cats is there, and no folder"):
        fetch("cats", root)


@pytest.mark.parametrize("data", [OTHER, b"<html>", tar(member("../evil"))])
def test_a_refused_archive_leaves_what_is_there(data: bytes, root: Path, tmp_path: Path) -> None:
    """The checksum is looked at first; then the content; only then anything changes."""
    take(tar(), root)
    (tmp_path / "x.tgz").write_bytes(data)
    sha256 = hashlib.sha256(b"x" if data is OTHER else data).hexdigest()
    with pytest.raises(LadderError, match=r"expected|refused"):
        fetch("pets", root, str(tmp_path / "x.tgz"), sha256)
    assert content(root / "pets") == DATASET
    assert left(root) == ["pets"]


def test_a_disk_without_locks_can_be_fetched_to(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_handle: int, _how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    take(tar(), root)
    assert content(root / "pets") == DATASET


class Libc:
    """A system that cannot exchange two names at once."""

    def __init__(self, _name: None) -> None:
        pass


@pytest.mark.parametrize("step", range(5))
def test_a_fetch_that_is_killed_leaves_the_old_or_the_new(
    root: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """At whichever step of the change; also where names cannot change places at once."""
    take(tar(), root)
    if step > 1:
        monkeypatch.setattr(placing.ctypes, "CDLL", Libc)
    renamed = Path.rename
    left_over = [step]

    def rename(path: Path, target: Path) -> Path:
        if left_over[0] == 0:
            raise KeyboardInterrupt
        left_over[0] -= 1
        return renamed(path, target)

    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(Path, "rename", rename)
        take(OTHER, root)
    new = {name: data + b" new" for name, data in DATASET.items()}
    if (root / "pets").exists():
        assert content(root / "pets") in (DATASET, new)
    with contextlib.suppress(LadderError):
        take(OTHER, root)  # mends it, whatever the step
    folders = [content(root / name) for name in left(root)]
    assert content(root / "pets") in (DATASET, new)
    assert DATASET in folders
    assert not [name for name in left(root) if name.startswith(".")]


def test_too_many_files_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILES", 7)
    monkeypatch.setattr(tar_chapter, "MAX_MEMBERS", 21)
    with pytest.raises(LadderError, match="far more than it should"):
        take(tar(), root)
    folders = [member(f"d{i}", b"", tarfile.DIRTYPE) for i in range(30)]
    with pytest.raises(LadderError, match="too many members"):
        take(tar(*folders, files={}), root)


# Failures


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_fetch_leaves_nothing_behind(error: BaseException, root: Path) -> None:
    def stop(_done: int, _total: int, _note: str) -> None:
        raise error

    with pytest.raises((KeyboardInterrupt, LadderError)) as caught:
        take(tar(), root, run=Run(progress=stop))
    assert "pets cannot be made (No space left" in str(caught.value) or not str(caught.value)
    assert os.listdir(root) == []


def test_a_sample_that_fails_leaves_nothing_behind(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(LadderError, match="sample cannot be made"):
        fetch("sample", root)
    assert os.listdir(root) == []


def test_what_a_killed_fetch_left_is_swept_away(root: Path) -> None:
    half = root / ".pets.part" / "made"
    half.mkdir(parents=True)
    (half / "half.png").touch()
    (root / ".pets.part" / "archive").touch()
    take(tar(), root)
    assert content(root / "pets") == DATASET
    assert left(root) == ["pets"]


def test_a_second_fetch_of_the_same_waits_for_nobody(root: Path) -> None:
    """It says so; the first one is not disturbed."""

    def again(_done: int, _total: int, _note: str) -> None:
        with pytest.raises(LadderError, match="is being fetched by another process"):
            take(tar(), root)

    take(tar(), root, run=Run(progress=again))
    assert content(root / "pets") == DATASET


@pytest.mark.parametrize(
    ("name", "source", "sha256", "says"),
    [
        ("mnits", None, None, "'mnits', the known ones are sample and mnist: add --from"),
        ("mnits", None, "0" * 64, "'mnits', the known ones are sample and mnist: add --from"),
        ("../evil", "x", "0" * 64, "cannot name a dataset"),
        (".hidden", "x", "0" * 64, "cannot name a dataset"),
        ("Cache", "x", "0" * 64, "cannot name a dataset"),
        ("pets ", "x", "0" * 64, "cannot name a dataset"),
        ("pets", "", "0" * 64, "--from '' cannot be read"),
        ("", "x", "0" * 64, "cannot name a dataset"),
        ("pets", "gone.tgz", "0" * 64, "gone.tgz cannot be read"),
        ("pets", "gone.tgz", None, "gone.tgz cannot be read"),
        ("pets", "https://example.invalid/x.tgz", None, "x.tgz: add --sha256 HEX"),
        ("pets", "gone.tgz", "abc", "--sha256 'abc': a sha256 has 64"),
        (
            "mnist",
            __file__,
            None,
            r"has \d+ bytes, expected 15683414; it is a text; nothing is",
        ),
        ("mnist", "/dev/null", None, "/dev/null is no file"),
        ("pets", "/dev/zero", "0" * 64, "/dev/zero is no file"),
        ("pets", "/tmp", "0" * 64, "is a folder: `stepladder run` takes it as it is"),
        ("pets", "a\0b", "0" * 64, "cannot be read"),
        ("pets", "~nobody-of-this-name/x", "0" * 64, "cannot be read"),
        ("pets", "x" * 5000, "0" * 64, "cannot be read"),
        ("pets", "x.tgz", "é" * 5000, "64 hexadecimal digits"),
        ("a" * 300, "x.tgz", "0" * 64, "cannot name a dataset"),
        ("sample", None, "0" * 64, "--sha256 is of an archive: add --from"),
        ("pets", "ftp://me:secret@host/x", "0" * 64, "--from 'ftp://host/x' cannot be read; give"),
        ("pets", "file://host/x?secret", "0" * 64, "cannot be read; give a file's path"),
        ("pets", "https://me:secret@/x", "0" * 64, "cannot be read; give a file's path"),
        ("pets", "http://[me:secret@::1/x", "0" * 64, "is no URL"),
        ("pets", "http://127.0.0.1:port/x", "0" * 64, "cannot be downloaded .no URL. nonnumeric"),
        ("pets", f"http://{'a' * 99}/x", "0" * 64, "cannot be downloaded .no URL. .*label too lo"),
        ("pets", "http://127.0.0.1:9\n/x y", "0" * 64, r"http://127.0.0.1:9.n/x y cannot be down"),
    ],
)
def test_a_mistake_is_named_in_one_line(
    root: Path, name: str, source: str | None, sha256: str | None, says: str
) -> None:
    with pytest.raises(LadderError, match=says) as caught:
        fetch(name, root, source, sha256)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not root.exists() or os.listdir(root) == []


def test_a_local_file_without_checksum_is_taken_and_told_its_own(
    root: Path, tmp_path: Path
) -> None:
    """It is on this machine already: its digest is printed, for the next time."""
    (tmp_path / "x.tgz").write_bytes(tar())
    found = hashlib.sha256((tmp_path / "x.tgz").read_bytes()).hexdigest()
    said: list[str] = []
    folder = fetch("pets", root, str(tmp_path / "x.tgz"), None, Run(), said.append)
    assert content(folder) == DATASET
    assert f"its sha256 is {found}" in said[0]
    shutil.rmtree(root)
    (tmp_path / "x.tgz").write_bytes(b"PAR1" + bytes(99))
    with pytest.raises(LadderError, match=r"x\.tgz is refused: it is a Parquet file"):
        fetch("pets", root, str(tmp_path / "x.tgz"))


def test_a_wrong_checksum_is_said_before_anything_is_unpacked(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chapter, "unpack", None)
    (tmp_path / "x.tgz").write_bytes(b"\n<!DOCTYPE html><title>Please log in")
    found = hashlib.sha256((tmp_path / "x.tgz").read_bytes()).hexdigest()
    says = f"its sha256 is {found}, expected {'0' * 64}; it is a web page, perhaps of a login"
    with pytest.raises(LadderError, match=says):
        fetch("pets", root, str(tmp_path / "x.tgz"), "0" * 64)
    assert (tmp_path / "x.tgz").exists()
    assert os.listdir(root) == []


# Downloads, from this machine alone


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one archive at /good, and less than it promises at /short."""

    data = tar()
    seen: ClassVar[list[tuple[str, str | None]]] = []  # path and authorization of each request

    def do_GET(self) -> None:
        """Answer."""
        self.seen.append((self.path, self.headers["Authorization"]))
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("to=")[2])
            self.end_headers()
            return
        if self.path not in ("/good", "/short"):
            self.send_error(404, "at http://me:secret@host/?secret")
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.data)))
        self.end_headers()
        self.wfile.write(self.data if self.path == "/good" else self.data[:100])

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_a_download_is_verified_unpacked_and_reported_in_bytes(server: str, root: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    run = Run(progress=lambda *call: calls.append(call))
    sha256 = hashlib.sha256(Handler.data).hexdigest()
    assert content(fetch("pets", root, f"{server}/good", sha256, run)) == DATASET
    size = len(Handler.data)
    assert (size, size, "downloading pets") in calls
    assert calls[-1] == (size, size, "unpacking pets")
    assert left(root) == ["pets"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/gone", r"/gone cannot be downloaded \(the server says 404 at http://host/\?\.\.\.\)"),
        (
            "/gone?token=secret#secret",
            r"/gone\?\.\.\. cannot be downloaded \(the server says 404 at",
        ),
        ("/good?token=secret", "the server says 404"),
        ("/moved?secret&to=/gone?secret", "the server says 404"),
        (
            "/moved?secret&to=file:///secret",
            "the server says 302 Found - Redirection to url 'file:",
        ),
        ("/moved?secret&to=http://me:secret@[::1/x", "no network|the server says"),
        ("/moved?to=/moved?to=/moved?to=/moved?to=", "infinite loop"),
        ("/short", r"it broke off after 100 of \d+ bytes"),
        ("/good", "its sha256 is [0-9a-f]{64}, expected 0{64}; nothing is kept"),
    ],
)
def test_a_failed_download_leaves_nothing(server: str, root: Path, path: str, says: str) -> None:
    url = server.replace("http://", "http://me:secret@")
    with pytest.raises(LadderError, match=says) as caught:
        fetch("pets", root, f"{url}{path}", "0" * 64)
    assert "secret" not in str(caught.value).replace("file:///secret", "")
    assert "\n" not in str(caught.value)
    assert os.listdir(root) == []


def test_user_and_password_in_a_url_go_to_its_host_alone(server: str, root: Path) -> None:
    """They are neither sent on where that host points elsewhere, nor told or kept anywhere."""
    calls: list[tuple[int, int, str]] = []
    said: list[str] = []
    Handler.seen.clear()
    url = server.replace("http://", "http://m%65:se:cr%40t@")
    sha256 = hashlib.sha256(Handler.data).hexdigest()
    run = Run(progress=lambda *call: calls.append(call))
    fetch("pets", root, f"{url}/moved?to={server}/good", sha256, run, said.append)
    header = f"Basic {base64.b64encode(b'me:se:cr@t').decode()}"
    assert Handler.seen == [(f"/moved?to={server}/good", header), ("/good", None)]
    kept = [path.read_bytes() for path in (root / "cache").rglob("*") if path.is_file()]
    assert b"cr" not in b"".join(kept)
    assert "cr" not in str([*calls, *said]).replace("archive", "")


@pytest.mark.parametrize(
    "error",
    [
        urllib.request.URLError("[Errno -3] Temporary failure in name resolution"),
        TimeoutError("timed out"),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
)
def test_without_network_one_line_says_so_and_names_from(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def offline(request: urllib.request.Request, timeout: float) -> None:
        assert request.full_url == "https://s3.amazonaws.com/fast-ai-imageclas/mnist_png.tgz"
        assert timeout > 0
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(LadderError, match=r"no network\?") as caught:
        fetch("mnist", root)
    assert "`stepladder fetch mnist --from FILE_OR_URL --sha256 HEX`" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(root) == []
