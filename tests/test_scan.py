"""The scan sees every change, reads only what changed, and trusts nothing it cannot verify."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tasks.caching.basics import LadderError
from tasks.caching.stage import Run
from tasks.images import folders
from tasks.images import scan as chapter
from tasks.images.scan import Dataset, scan

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
    read_files = folders.read_files

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
    for place in ("training/x", "training/y", "testing/x", "testing/y"):
        (tmp_path / "d" / place).mkdir(parents=True)
        (tmp_path / "d" / place / "a.png").write_bytes(b"a")
    expected = hashlib.sha256(b"1\0a.png\0" + hashlib.sha256(b"a").digest()).hexdigest()
    assert digests(scan(tmp_path / "d", root)) == [expected] * 4


def test_whatever_is_not_used_has_a_line_with_the_reason(write_dataset: Write, root: Path) -> None:
    """Beside the splits, beside the classes, in a class; one line for many of a kind."""
    path = write_dataset()
    cat = path / "training" / "cat"
    for name in ("notes.txt", ".hidden.png", ".DS_Store"):
        (cat / name).touch()
    for folder in ("cat/more", "cat/folder.png", ".cache", "__MACOSX", "@eaDir", "lost+found"):
        (path / "training" / folder).mkdir()
    os.mkfifo(cat / "pipe.png")
    for folder in ("unused/cat", "extra", ".git", "$RECYCLE.BIN"):
        (path / folder).mkdir(parents=True)
    for file in ("README.md", "testing/labels.csv", "testing/Thumbs.db", "testing/desktop.ini"):
        (path / file).touch()
    for number in range(1000):
        (path / f"testing/dog/{number:04}.txt").touch()
    (path / "testing/link").symlink_to("gone")
    (cat / "UPPER.JPG").write_bytes(b"x")
    (cat / "long.JpEg").write_bytes(b"y")
    dataset = scan(path, root)
    assert dataset.classes == ["cat", "dog"]
    assert dataset.skipped == [
        "animals/$RECYCLE.BIN: left by a system, no images",
        "animals/.git: hidden",
        "animals/README.md: a file beside training and testing",
        "animals: a folder beside training and testing, not used (2: extra, unused)",
        "testing/dog: .txt is no image that is read "
        "(1,000: 0000.txt, 0001.txt, 0002.txt, 0003.txt, 0004.txt, ...)",
        "testing: left by a system, no images (2: Thumbs.db, desktop.ini)",
        "testing: not in a class folder (2: labels.csv, link)",
        "training/.cache: hidden",
        "training/cat/notes.txt: .txt is no image that is read",
        "training/cat/pipe.png: not a regular file",
        "training/cat: hidden (2: .DS_Store, .hidden.png)",
        "training: left by a system, no images (3: @eaDir, __MACOSX, lost+found)",
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


def put(name: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes(b"x")


def link(name: str, target: str) -> Callable[[Path], object]:
    return lambda path: (path / name).symlink_to(target)


def rename(before: str, after: str) -> Callable[[Path], object]:
    return lambda path: (path / before).rename(path / after)


NFC, NFD = "caf\u00e9", "cafe\u0301"
SURROGATE = b"\xff".decode(errors="surrogateescape")


@pytest.mark.parametrize(
    ("acts", "lines"),
    [
        ([shutil.rmtree], ["animals: no such folder; give"]),
        ([remove("training")], ["no folder training or train; a dataset is laid out as train"]),
        ([remove("training"), remove("testing")],
         ["animals has no class folders; a dataset is laid out as"]),
        ([rename("training", "trainnig")],
         ["folder training or train; .*; if 'trainnig' is meant, rename it to training"]),
        ([rename("training", "trainnig"), rename("testing", "tesing")],
         ["no folder training or train and no folder testing or test; .*; if 'trainnig' is meant, "
          "rename it to training; if 'tesing' is meant, rename it to testing"]),
        ([make("Train"), make("test-2")],
         ["has both Train and training; keep one", "has both test-2 and testing; keep one"]),
        ([remove("training"), link("training", "training")], ["no folder training or train"]),
        ([remove("testing"), link("testing", "training")],
         ["animals/training and .*animals/testing are one folder: they need other images"]),
        ([remove("testing/cat"), link("testing/cat", "../training/cat")],
         ["training/cat and .*testing/cat are one folder: each needs images of its own"]),
        ([remove("training/cat"), make("training/emu"), remove("testing/dog"), make("testing/emu")],
         ["training lacks the class cat: add .*training/cat or remove .*testing/cat",
          "testing lacks the class dog: add .*testing/dog or remove .*training/dog",
          "training/emu holds no .*: add images to it, or remove the class emu from training and t",
          "testing/emu holds no images: add images to it, or remove the class emu"]),
        ([make("testing/emu"), make("training/emu"), put("training/emu/x.raw"),
          make("testing/emu/a"), make("testing/emu/b")],
         ["training/emu holds no images, only x.raw: add",
          "testing/emu holds no images, only a, b: add"]),
        ([remove("training"), make("training")], ["training has no class folders; make one"]),
        ([remove("training"), make("training"), put("training/a.png"), put("training/b.jpg")],
         ["training has no class folders but 2 images; make one folder of images per class"]),
        ([remove("training/dog"), remove("testing/dog")],
         ["animals has one class, cat: a ladder needs two or more, a folder each"]),
        ([remove("training/dog"), remove("testing/dog"), make("training/cat/tom")],
         ["one class, cat: .*; perhaps its folders are the classes .tom.: move them up"]),
        ([rename("training/cat", "training/Cat")],
         ["the class 'Cat' of .*training is 'cat' in .*testing: give both folders one name"]),
        ([rename("training/cat", "training/cat ")], ["the class 'cat ' of .* is 'cat' in"]),
        ([rename("training/cat", "training/c\uff41t")],
         [r"the class 'c\\uff41t' of .* is 'cat' in"]),
        ([make(f"training/{NFC}"), make(f"training/{NFD}"), make(f"testing/{NFC}")],
         ["training has the class café twice, its accents written in two ways: move",
          "training/caf.* holds no", "testing/café holds no"]),
        ([link("training/cat/x.png", "gone"), link("training/dog/y.png", "y.png")],
         ["cat/x.png .*a broken link.: mend or", "dog/y.png cannot be read .*symbolic links"]),
        ([put(f"training/cat/{SURROGATE}.png"), put(f"testing/dog/{SURROGATE}.png")],
         [r"cat: the name \\udcff.png is not UTF-8; rename it", "dog: the name .* is not UTF-8"]),
        ([make(f"training/{SURROGATE}")], [r"training: the name \\udcff is not UTF-8"]),
        ([make("training/a\nb\u202e\x1b")],
         [r"testing lacks the class a\\nb\\u202e\\x1b: add .*/a\\nb\\u202e\\x1b or remove"]),
        ([link("training/cat/a\nb.png", "gone")], [r"cat/a\\nb.png cannot be read"]),
    ],
)  # fmt: skip
def test_all_mistakes_are_told_at_once_in_one_line_each(
    write_dataset: Write, root: Path, acts: list[Callable[[Path], object]], lines: list[str]
) -> None:
    path = write_dataset()
    for act in acts:
        act(path)
    with pytest.raises(LadderError) as caught:
        scan(path, root)
    told = str(caught.value).split("\n")
    assert len(told) == len(lines)
    for line, expected in zip(told, lines, strict=True):
        assert re.search(expected, line), line


def test_the_folder_that_was_meant_is_named(write_dataset: Write, root: Path) -> None:
    path = write_dataset()
    with pytest.raises(LadderError, match=r"0.png: no such folder; give a dataset's folder"):
        scan(path / "training" / "cat" / "0.png", root)
    for given in (path.parent, path / "training", path / "training" / "cat"):
        with pytest.raises(LadderError, match=f"a dataset is laid out as .*; {path} is"):
            scan(given, root)


def test_classes_match_however_their_accents_are_written(write_dataset: Write, root: Path) -> None:
    path = write_dataset(classes=("cat", NFC))
    (path / "testing" / NFC).rename(path / "testing" / NFD)
    dataset = scan(path, root)
    assert dataset.classes == [NFC, "cat"]
    assert [Path(side[0].path).name for side in (dataset.training, dataset.testing)] == [NFC, NFD]


def test_a_file_too_large_is_refused_before_it_is_read(
    write_dataset: Write, root: Path, were_read: list[str]
) -> None:
    """Sparse files of 4 GiB, in two folders, both told with the limit."""
    path = write_dataset()
    for name in ("training/cat/a.png", "testing/dog/b.jpg"):
        with open(path / name, "wb") as file:
            file.truncate(2**32)
    says = "{} has 4,294,967,296 bytes; at most 256,000,000 are read of a file"
    with pytest.raises(LadderError) as caught:
        scan(path, root)
    lines = str(caught.value).split("\n")
    for line, name in zip(lines, ("cat/a.png", "dog/b.jpg"), strict=True):
        assert says.format(name) in line
    assert were_read == []


def test_what_became_endless_after_it_was_listed_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe, a device and a file that grew beyond the limit."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with open(tmp_path / "grown.png", "wb") as file:
        file.truncate(2**32)
    (tmp_path / "fine.png").write_bytes(b"fine")
    names = ["pipe.png", "zero.png", "grown.png", "gone.png", "fine.png"]
    pipe, *others, fine = folders.read_files(tmp_path, names)
    assert pipe == b""
    assert [re.sub(f"{tmp_path}/", "", str(each)) for each in others] == [
        "zero.png is no regular file any more: run again",
        "grown.png has 4,294,967,296 bytes; at most 256,000,000 are read of a file: shrink it or "
        "remove it",
        "gone.png cannot be read (it has just vanished): run again",
    ]
    assert fine == b"fine"


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EMFILE, "Too many open files.: raise the limit .`ulimit -n`. and run again"),
        (errno.ENOMEM, "Cannot allocate memory.: close other programs"),
        (errno.EIO, "Input/output error.: the file may be whole: look at its disk"),
        (errno.ESTALE, "Stale file handle.: the file may be whole"),
        (errno.EACCES, "Permission denied.: make it readable or remove it"),
    ],
)
def test_what_this_computer_lacks_is_not_called_damage(
    write_dataset: Write, root: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    path = write_dataset()

    def refuse(_file: int, _size: int) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "read", refuse)
    with pytest.raises(LadderError, match=rf"training/cat/0.png cannot be read .{says}") as caught:
        scan(path, root)
    shortage = number in (errno.EMFILE, errno.ENOMEM)
    assert str(caught.value).count("\n") == (0 if shortage else 11)  # of twelve files


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
def test_where_stat_cannot_change_all_is_read(
    write_dataset: Write, root: Path, were_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another image mounted in place of one, its times clamped to the same: all is read anew."""
    path = write_dataset()
    first = scan(path, root)
    were_read.clear()
    assert digests(scan(path, root)) == digests(first)
    assert were_read == []
    monkeypatch.setattr("tasks.images.scan.stat_tells", lambda _folder: False)
    assert digests(scan(path, root)) == digests(first)
    assert were_read


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
        (data,) = folders.read_files(tmp_path, [f"{size}"])
        assert data == (tmp_path / f"{size}").read_bytes()


def test_progress_ends_at_its_total(write_dataset: Write, root: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    scan(write_dataset(), root, run=Run(progress=lambda *call: calls.append(call)))
    assert calls[0] == (0, 4, "training/cat")
    assert calls[-1][:2] == (4, 4)


def test_all_of_mnist_is_listed(mnist: Path, root: Path) -> None:
    dataset = scan(mnist, root)
    assert sum(f.count for f in dataset.training) == 60_000
    assert sum(f.count for f in dataset.testing) == 10_000
    assert scan(mnist, root) == dataset
