"""A dataset arrives whole and as promised, or not at all."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import tarfile
import threading
import unicodedata
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tasks import fetch as chapter
from tasks.caching.basics import LadderError
from tasks.caching.stage import Run
from tasks.fetch import Archive, fetch

DATASET = {
    f"{split}/{label}/{number}.png": f"{split}{label}{number}".encode()
    for split in ("training", "testing")
    for label in ("cat", "dog")
    for number in range(2)
}


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


def take(data: bytes, root: Path, run: Run | None = None) -> Path:
    """Fetch from a local file that holds these bytes, with their right checksum."""
    root.mkdir(exist_ok=True)
    file = root.parent / "archive.bin"
    file.write_bytes(data)
    return fetch("pets", root, str(file), hashlib.sha256(data).hexdigest(), run or Run())


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
    ],
    ids=["tar.gz", "tar", "GNU", "ustar", "pax", "one folder", "./", "folders", "macOS", "zip",
         "zip, one folder"],
)  # fmt: skip
def test_an_archive_of_a_dataset_is_unpacked(data: bytes, root: Path) -> None:
    assert take(data, root) == root / "pets"
    assert content(root / "pets") == DATASET
    assert os.listdir(root) == ["pets"]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_foreign_names_arrive(kind: int, root: Path) -> None:
    long = "long " * 18 if kind == tarfile.USTAR_FORMAT else "längere 猫 " * 12
    files = {**DATASET, f"training/cat/{long}.png": b"long", "training/dog/é, [1].PNG": b"odd"}
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
    assert [path.name for path in mnist.parent.iterdir()] == ["mnist"]


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
    "too deep": tar(member("a/b/c/d/e/f/g/h/i.png")),
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


def test_too_many_files_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chapter, "MAX_FILES", 7)
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
    left = root / ".pets.part" / "unpacked"
    left.mkdir(parents=True)
    (left / "half.png").touch()
    (root / ".pets.part" / "archive").touch()
    take(tar(), root)
    assert content(root / "pets") == DATASET
    assert os.listdir(root) == ["pets"]


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
        ("mnits", None, None, "mnits is none of sample and mnist: add --from"),
        ("mnits", None, "0" * 64, "mnits is none of sample and mnist: add --from"),
        ("../evil", "x", "0" * 64, "cannot name a dataset"),
        (".hidden", "x", "0" * 64, "cannot name a dataset"),
        ("cache", "x", "0" * 64, "cannot name a dataset"),
        ("", "x", "0" * 64, "cannot name a dataset"),
        ("pets", "gone.tgz", "0" * 64, "gone.tgz cannot be read"),
        ("pets", "gone.tgz", None, "gone.tgz: add --sha256 HEX"),
        ("pets", "https://example.invalid/x.tgz", None, "x.tgz: add --sha256 HEX"),
        ("pets", "gone.tgz", "abc", "--sha256 abc: a sha256 has 64"),
        ("mnist", "/dev/null", None, "has 0 bytes, expected 15683414"),
    ],
)
def test_a_mistake_is_named_in_one_line(
    root: Path, name: str, source: str | None, sha256: str | None, says: str
) -> None:
    with pytest.raises(LadderError, match=says):
        fetch(name, root, source, sha256)
    assert not root.exists() or os.listdir(root) == []


def test_a_local_file_without_checksum_is_told_its_own(root: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tgz").write_bytes(tar())
    found = hashlib.sha256((tmp_path / "x.tgz").read_bytes()).hexdigest()
    with pytest.raises(LadderError, match=f"x.tgz: if you trust this file, add --sha256 {found}"):
        fetch("pets", root, str(tmp_path / "x.tgz"))
    assert os.listdir(root) == []


def test_a_wrong_checksum_is_said_before_anything_is_unpacked(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chapter, "_unpack", None)
    (tmp_path / "x.tgz").write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(LadderError, match=f"its sha256 is {found}, expected {'0' * 64}"):
        fetch("pets", root, str(tmp_path / "x.tgz"), "0" * 64)
    assert (tmp_path / "x.tgz").exists()
    assert os.listdir(root) == []


# Downloads, from this machine alone


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one archive at /good, and less than it promises at /short."""

    data = tar()

    def do_GET(self) -> None:
        """Answer."""
        if self.path not in ("/good", "/short"):
            self.send_error(404)
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
    assert os.listdir(root) == ["pets"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/gone", "the server says 404 Not Found"),
        ("/short", r"it broke off after 100 of \d+ bytes"),
        ("/good", "its sha256 is [0-9a-f]{64}, expected 0{64}; nothing is kept"),
    ],
)
def test_a_failed_download_leaves_nothing(server: str, root: Path, path: str, says: str) -> None:
    with pytest.raises(LadderError, match=says):
        fetch("pets", root, f"{server}{path}", "0" * 64)
    assert os.listdir(root) == []


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
    def offline(url: str, timeout: float) -> None:
        assert url == "https://s3.amazonaws.com/fast-ai-imageclas/mnist_png.tgz"
        assert timeout > 0
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(LadderError, match=r"no network\?") as caught:
        fetch("mnist", root)
    assert "`stepladder fetch mnist --from FILE_OR_URL --sha256 HEX`" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(root) == []
