"""The scan sees every change, reads only what changed, and trusts nothing it cannot verify."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tasks import scan as chapter
from tasks.caching.basics import LadderError
from tasks.caching.stage import Run
from tasks.scan import Dataset, scan

Write = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old enough to be trusted, though the test has just written them."""
    monkeypatch.setattr(chapter, "GRANULARITY", -(10**15))


@pytest.fixture
def were_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read, as they are read."""
    names: list[str] = []
    read_files = chapter.read_files

    def spy(folder: Path, wanted: Iterable[str]) -> Iterator[bytes]:
        wanted = list(wanted)
        names.extend(f"{folder.name}/{name}" for name in wanted)
        return read_files(folder, wanted)

    monkeypatch.setattr(chapter, "read_files", spy)
    return names


def digests(dataset: Dataset) -> list[str]:
    return [folder.digest for folder in dataset.training + dataset.testing]


def rewrite(path: Path, data: bytes) -> None:
    time.sleep(0.02)  # beyond the tick of the clock that stamps files
    path.write_bytes(data)


def test_a_listing_holds_sorted_names_and_the_sha256_of_each_file(
    write_dataset: Write, root: Path
) -> None:
    path = write_dataset(classes=("b", "a"), count=12)
    dataset = scan(path, root)
    assert dataset.name == "animals"
    assert dataset.classes == ["a", "b"]
    assert [f.label for f in dataset.training + dataset.testing] == [
        *("training/a", "training/b", "testing/a", "testing/b")
    ]
    for folder in dataset.training + dataset.testing:
        files = folder.load(root)
        assert folder.count == len(files.names) == 12
        assert files.names == sorted(os.listdir(folder.path))
        expected = [hashlib.sha256((files.folder / n).read_bytes()).digest() for n in files.names]
        assert files.digests.dtype == np.uint8
        assert files.digests.tobytes() == b"".join(expected)


@pytest.mark.parametrize(
    "splits", [("train", "valid"), ("train", "test"), ("training", "test"), ("train", "testing")]
)
def test_splits_have_other_names_too_but_one_label(
    write_dataset: Write, root: Path, splits: tuple[str, str]
) -> None:
    dataset = scan(write_dataset(splits=splits), root)
    assert [f.label for f in dataset.training] == ["training/cat", "training/dog"]
    assert [f.label for f in dataset.testing] == ["testing/cat", "testing/dog"]
    assert Path(dataset.testing[0].path).parent.name == splits[1]


def test_classes_are_sorted_by_their_bytes_whatever_their_script(
    write_dataset: Write, root: Path
) -> None:
    names = ("a", "B", "ä", "猫", "🐕", "10", "9", "with space", "[1]")
    dataset = scan(write_dataset(classes=names, count=1), root)
    assert dataset.classes == sorted(names, key=os.fsencode)
    assert [f.label for f in dataset.training] == [f"training/{c}" for c in dataset.classes]


def test_a_digest_depends_on_names_and_bytes_and_on_no_path(
    write_dataset: Write, root: Path, tmp_path: Path
) -> None:
    path = write_dataset()
    shutil.copytree(path, tmp_path / "elsewhere")
    here, there = scan(path, root), scan(tmp_path / "elsewhere", root)
    assert digests(here) == digests(there)
    assert len(set(digests(here))) == 4
    (tmp_path / "elsewhere/training/cat/0.png").rename(tmp_path / "elsewhere/training/cat/9.png")
    renamed = scan(tmp_path / "elsewhere", root)
    assert renamed.training[0].digest != here.training[0].digest
    assert digests(renamed)[1:] == digests(here)[1:]


def test_the_digest_of_a_listing_is_golden(tmp_path: Path, root: Path) -> None:
    """A changed digest would decode every folder of every user again: do it knowingly."""
    for split in ("training", "testing"):
        (tmp_path / "d" / split / "x").mkdir(parents=True)
        (tmp_path / "d" / split / "x" / "a.png").write_bytes(b"a")
    expected = hashlib.sha256(b"1\0a.png\0" + hashlib.sha256(b"a").digest()).hexdigest()
    assert digests(scan(tmp_path / "d", root)) == [expected, expected]


def test_other_files_are_skipped_with_the_reason(write_dataset: Write, root: Path) -> None:
    path = write_dataset()
    cat = path / "training" / "cat"
    (cat / "notes.txt").touch()
    (cat / "more").mkdir()
    (cat / "folder.png").mkdir()
    os.mkfifo(cat / "pipe.png")
    (cat / ".hidden.png").touch()
    (path / "training" / ".cache").mkdir()
    (path / "testing" / "labels.csv").touch()
    (cat / "UPPER.JPG").write_bytes(b"x")
    (cat / "long.JpEg").write_bytes(b"y")
    dataset = scan(path, root)
    assert dataset.skipped == [
        "testing/labels.csv: not in a class folder",
        "training/cat/folder.png: a folder inside a class folder",
        "training/cat/more: a folder inside a class folder",
        "training/cat/notes.txt: not .png, .jpg or .jpeg",
        "training/cat/pipe.png: not a regular file",
    ]
    names = dataset.training[0].load(root).names
    assert names == ["0.png", "1.png", "2.png", "UPPER.JPG", "long.JpEg"]


def test_links_are_followed(write_dataset: Write, root: Path, tmp_path: Path) -> None:
    path = write_dataset()
    (path / "training" / "dog").rename(tmp_path / "dogs")
    (path / "training" / "dog").symlink_to(tmp_path / "dogs")
    (path / "training" / "cat" / "3.png").symlink_to(path / "training" / "cat" / "0.png")
    files = scan(path, root).training[0].load(root)
    assert files.digests[3].tolist() == files.digests[0].tolist()


def remove(folder: str) -> Callable[[Path], object]:
    return lambda path: shutil.rmtree(path / folder)


def make(folder: str) -> Callable[[Path], object]:
    return lambda path: (path / folder).mkdir(parents=True)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, "animals: no such folder"),
        (remove("training"), "no folder training or train; a dataset is laid out"),
        (remove("testing"), "no folder testing or test or valid"),
        (make("train"), "has both training and train; keep one"),
        (make("valid"), "has both testing and valid; keep one"),
        (remove("training/cat"), "training lacks the class cat: add .*training/cat or remove"),
        (remove("testing/cat"), "testing lacks the class cat: add .*testing/cat or remove"),
        (make("training/emu"), "testing lacks the class emu"),
        (lambda path: (remove("training/cat")(path), make("training/cat")(path)), "cat holds no"),
        (lambda path: (remove("training")(path), make("training")(path)), "no class folders"),
        (lambda path: (path / "training/cat/x.png").symlink_to("gone"), "x.png .*a broken link"),
        (lambda path: (path / "training/cat/x.png").symlink_to("x.png"), "x.png cannot be read"),
        (lambda path: (path / b"training/cat/\xff.png".decode(errors="surrogateescape")).touch(),
         r"cat: the name \\udcff.png is not UTF-8; rename it"),
        (lambda path: (path / b"training/\xff".decode(errors="surrogateescape")).mkdir(),
         r"training: the name \\udcff is not UTF-8"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_in_one_line(
    write_dataset: Write, root: Path, damage: Callable[[Path], object], says: str
) -> None:
    path = write_dataset()
    damage(path)
    with pytest.raises(LadderError, match=says) as caught:
        scan(path, root)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(
    write_dataset: Write, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_dataset()

    def refuse(_file: int, _size: int) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "read", refuse)
    with pytest.raises(LadderError, match=r"training/cat/0.png cannot be read \(Permission denied"):
        scan(path, root)


def test_a_cache_that_cannot_be_written_is_named(write_dataset: Write, tmp_path: Path) -> None:
    path = write_dataset()
    (tmp_path / "file").touch()
    with pytest.raises(LadderError, match="file/listings"):
        scan(path, tmp_path / "file")


@pytest.mark.usefixtures("settled")
def test_an_unchanged_dataset_is_not_read_again_and_nothing_is_written(
    write_dataset: Write, root: Path, were_read: list[str]
) -> None:
    path = write_dataset()
    first = scan(path, root)
    assert len(were_read) == 12
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in root.rglob("*.arrow")}
    were_read.clear()
    assert scan(path, root) == first
    assert were_read == []
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in root.rglob("*.arrow")} == before
    assert not list(root.rglob("*.tmp"))


@pytest.mark.usefixtures("settled")
def test_only_what_changed_is_read_and_explain_names_it(
    write_dataset: Write, root: Path, were_read: list[str]
) -> None:
    path = write_dataset(count=5)
    before = scan(path, root).training[0]
    were_read.clear()
    cat = path / "training" / "cat"
    rewrite(cat / "2.png", b"other")
    (cat / "4.png").unlink()
    (cat / "00.png").write_bytes(b"new")
    (cat / "x.png").write_bytes(b"newer")
    dataset = scan(path, root)
    assert were_read == ["cat/00.png", "cat/2.png", "cat/x.png"]
    after = dataset.training[0]
    assert after.explain(before.digest, root) == (
        "training/cat: 2 added, 1 removed (4.png), 1 changed (2.png)"
    )
    assert after.explain(after.digest, root) == "training/cat: unchanged"
    assert after.explain("0" * 64, root) == "training/cat changed"
    files = after.load(root)
    expected = [hashlib.sha256((cat / name).read_bytes()).digest() for name in files.names]
    assert files.digests.tobytes() == b"".join(expected)


@pytest.mark.usefixtures("settled")
def test_an_edit_of_equal_size_with_its_old_time_is_seen(write_dataset: Write, root: Path) -> None:
    path = write_dataset()
    before = scan(path, root)
    file = path / "training" / "dog" / "1.png"
    old = file.stat()
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    rewrite(file, bytes(data))
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert file.stat().st_mtime_ns == old.st_mtime_ns
    assert file.stat().st_size == old.st_size
    assert scan(path, root).training[1].explain(before.training[1].digest, root) == (
        "training/dog: 1 changed (1.png)"
    )


@pytest.mark.usefixtures("settled")
def test_a_touched_file_is_read_again_and_changes_no_digest(
    write_dataset: Write, root: Path, were_read: list[str]
) -> None:
    path = write_dataset()
    before = scan(path, root)
    were_read.clear()
    time.sleep(0.02)
    (path / "testing/cat/0.png").touch()
    assert scan(path, root) == before
    assert were_read == ["cat/0.png"]
    were_read.clear()
    assert scan(path, root) == before
    assert were_read == []


def test_a_file_too_young_to_be_trusted_is_read_again(
    write_dataset: Write, root: Path, were_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one tick of the clock a file may change and keep its stat: simulated to the letter."""
    path = write_dataset()
    scan(path, root)
    were_read.clear()
    scan(path, root)
    assert len(were_read) == 12
    monkeypatch.setattr(chapter, "GRANULARITY", -(10**15))
    scan(path, root)
    were_read.clear()
    scan(path, root)
    assert were_read == []


@pytest.mark.usefixtures("settled")
def test_classes_that_come_and_go_are_noticed(write_dataset: Write, root: Path) -> None:
    path = write_dataset(classes=("cat", "dog", "emu"))
    scan(path, root)
    shutil.rmtree(path / "training" / "dog")
    shutil.rmtree(path / "testing" / "dog")
    dataset = scan(path, root)
    assert dataset.classes == ["cat", "emu"]
    assert dataset == scan(path, root)


@pytest.mark.usefixtures("settled")
def test_a_damaged_index_is_rebuilt_without_a_word(write_dataset: Write, root: Path) -> None:
    """100 flipped bits, 30 truncations, foreign and missing files: the same dataset every time."""
    path = write_dataset()
    expected = scan(path, root)
    (index,) = (root / "scans").iterdir()
    good = index.read_bytes()
    generator = np.random.default_rng(1)
    listing = (root / "listings" / f"{expected.training[0].digest}.arrow").read_bytes()
    bad = [b"", b"not Arrow", listing, *(good[:n] for n in generator.integers(0, len(good), 30))]
    for position, bit in zip(generator.integers(0, len(good), 100), range(100), strict=True):
        flipped = bytearray(good)
        flipped[position] ^= 1 << bit % 8
        bad.append(bytes(flipped))
    for data in bad:
        index.write_bytes(data)
        assert scan(path, root) == expected
    index.unlink()
    assert scan(path, root) == expected
    assert index.exists()


@pytest.mark.usefixtures("settled")
def test_a_damaged_listing_is_never_loaded_and_the_next_scan_mends_it(
    write_dataset: Write, root: Path
) -> None:
    path = write_dataset()
    folder = scan(path, root).training[0]
    listing = root / "listings" / f"{folder.digest}.arrow"
    good = listing.read_bytes()
    expected = folder.load(root)
    generator = np.random.default_rng(2)
    mended = 0
    for position, bit in zip(generator.integers(0, len(good), 100), range(100), strict=True):
        flipped = bytearray(good)
        flipped[position] ^= 1 << bit % 8
        listing.write_bytes(flipped)
        try:
            files = folder.load(root)  # padding and metadata may flip without harm
        except LadderError:
            mended += 1
            scan(path, root)
            files = folder.load(root)
        assert files.names == expected.names
        assert files.digests.tobytes() == expected.digests.tobytes()
    assert mended > 20
    listing.unlink()
    with pytest.raises(LadderError, match=r"training/cat: its listing .* is lost; run again"):
        folder.load(root)
    assert scan(path, root).training[0].load(root).names == expected.names


def test_inodes_beyond_63_bits_are_compared_too() -> None:
    low, high = chapter._int64([1, -5, 3]), chapter._int64([1, -5, 2**64 - 1])
    assert low.tolist() == [1, -5, 3]
    assert high.tolist() == chapter._int64([1, -5, 2**64 - 1]).tolist() != low.tolist()


def test_a_file_of_many_reads_is_read_whole(tmp_path: Path) -> None:
    for size in (0, 65535, 65536, 65537, 200_000):
        (tmp_path / f"{size}").write_bytes(os.urandom(size))
        (data,) = chapter.read_files(tmp_path, [f"{size}"])
        assert data == (tmp_path / f"{size}").read_bytes()


def test_progress_ends_at_its_total(write_dataset: Write, root: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    scan(write_dataset(), root, Run(progress=lambda *call: calls.append(call)))
    assert calls[0] == (0, 4, "training/cat")
    assert calls[-1][:2] == (4, 4)


def test_all_of_mnist_is_listed(mnist: Path, root: Path) -> None:
    dataset = scan(mnist, root)
    assert sum(f.count for f in dataset.training) == 60_000
    assert sum(f.count for f in dataset.testing) == 10_000
    assert scan(mnist, root) == dataset
