"""What everything needs and nothing heavy is imported for: errors, where data lies, writing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import reprlib
import secrets
import stat
from collections.abc import Iterable, Iterator
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

MOST = 20  # problems told at once; a wall of them hides the first
LITTER = re.compile(r"\..*\.\d+-[0-9a-f]{8}\.tmp", re.DOTALL)  # what `write_atomic` may leave

# That a file is not there, or that its name leads to no file: nothing else is said of the file.
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.ENAMETOOLONG)
_ADVICE = {
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files: `ulimit -n 4096`"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space there, or set "
                    "STEPLADDER_DATA"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "let its group or yourself use that "
                    "folder, or set STEPLADDER_DATA to one of your own"),
    errno.ENAMETOOLONG: "set STEPLADDER_DATA to a shorter path",
    errno.ENOMEM: "free some memory",
}  # fmt: skip


class LadderError(Exception):
    """A mistake its reader can mend: one line that names the culprit and says what to do."""


class UsageError(LadderError):
    """A command line that cannot be meant."""


class CommonError(LadderError):
    """What no rung of a run gets around: of the dataset, the disk, the machine."""


class OvertimeError(CommonError, TimeoutError):
    """A run took longer than it was given; Prefect then calls it TimedOut."""

    def __repr__(self) -> str:
        """Prefect's log shows this."""
        return str(self)


class RungsError(LadderError):
    """Some rungs failed; the others are reported in `folder`."""

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder


class DamagedError(LadderError):
    """A cached file or record is not what was stored."""


class StageError(Exception):
    """A stage's own code failed; carries the traceback of its process."""


class SeveralError(LadderError):
    """Of stages that one task performs, some failed: `each` says by name why."""

    def __init__(self, each: dict[str, Exception]) -> None:
        super().__init__(told(map(str, each.values())))
        self.each = each

    def __reduce__(self) -> tuple[Any, ...]:
        """As it was made, for workers elsewhere."""
        return type(self), (self.each,)


class StoppedError(StageError):
    """A stage did not begin, because its run had been stopped: no failure of its own."""


def data_root() -> Path:
    """The folder of datasets, cache and reports: STEPLADDER_DATA, or `data/` of the checkout."""
    chosen = os.environ.get("STEPLADDER_DATA")
    checkout = Path(__file__).resolve().parents[2] / "data"
    if chosen:
        return expand(chosen)
    return checkout if checkout.is_dir() else Path("data")


def cache_root() -> Path:
    """The folder of stored results, its links followed, so that all processes name it alike."""
    return (data_root() / "cache").resolve()


def expand(path: str) -> Path:
    """A path with ~ and ~user made out, where there is such a user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def printable(text: str) -> str:
    """Text from outside for a terminal: what could steer one stands as its escape sequence."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def clean(name: object) -> str:
    """A name from outside for one line of a message: nothing in it breaks the line or steers."""
    return printable(str(name)).replace("\n", "\\n")


def spelled(seconds: int) -> str:
    """A time as people write it: 90s, 30m, 8h."""
    size, unit = next(each for each in ((3600, "h"), (60, "m"), (1, "s")) if not seconds % each[0])
    return f"{seconds // size}{unit}"


def in_brief(error: Exception) -> str:
    """An error in one line: its text, or the last line of the traceback that it carries."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shortened(lines[-1] if "Traceback (most recent call last)" in str(error) else lines[0])


def told(problems: Iterable[str]) -> str:
    """Problems, one a line: the first 20, then how many more; texts made by it are counted too."""
    lines = [line for problem in problems for line in problem.split("\n")]
    sums = {line: re.fullmatch(r"and ([\d,]+) more", line) for line in lines}
    more = sum(int(found[1].replace(",", "")) for line in lines if (found := sums[line]))
    lines = [line for line in lines if not sums[line]]
    more += len(lines[MOST:])
    return "\n".join(lines[:MOST] + [f"and {more:,} more"] * (more > 0))


# Scheme; what stands before the last @, where it may be a password; host and path; query.
_URL = re.compile(
    r"([A-Za-z][\w+.-]{0,20}://)"
    r"(?:[^\s/?#@:]+:(?!\d+/)\S*@|[^\s/?#]*@)?"
    r"([^\s?#'\"]*)([?#][^\s'\"]*)?"
)


def redacted(text: str) -> str:
    """Text without the secrets that URLs in it may hold: user, password, query and fragment."""
    return _URL.sub(lambda url: url[1] + url[2] + (f"{url[3][0]}..." if url[3] else ""), text)


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[tuple[BufferedReader, os.stat_result]]:
    """A file of others, opened for reading, and its stat.

    Raises DamagedError for what is no regular file (a pipe would keep its reader waiting), and
    OSError.
    """
    _insist_on_regular(path, path.stat())  # looked at first: to open a device may do something
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(file, "rb") as opened:
        yield opened, _insist_on_regular(path, os.fstat(file))


def read_regular(path: Path, limit: int = 1 << 40) -> bytes | None:
    """The bytes of a file of others, or None when there is none.

    Raises DamagedError for what is no regular file or has more than `limit` bytes, and LadderError
    when this machine or its user cannot read it.
    """
    try:
        with open_regular(path) as (file, status):
            if status.st_size > limit:
                raise DamagedError(f"{path} has {status.st_size:,} bytes, {limit:,} are the most")
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error


def digest_of_file(path: Path) -> str:
    """The hex sha256 of a file.  Raises LadderError where it cannot be read."""
    try:
        with open_regular(path) as (file, _status):
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LadderError(f"{clean(path)} cannot be read ({error.strerror or error})") from None


def _insist_on_regular(path: Path, status: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError(f"{path} is not a regular file")
    return status


def entries(folder: Path) -> list[Path]:
    """What lies in a folder now, sorted; nothing where there is no such folder.

    Raises LadderError for a folder that may not be looked into.
    """
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(folder, error) from error


def shown(value: Any) -> str:
    """What came from outside, on one line and cut where it is long; text in quotes."""
    if isinstance(value, str):
        if len(value) > 10_000:
            return f"a text of {len(value):,} characters"
        line = printable(redacted(value)).replace("\n", "\\n")
        short = len(line) <= 100
        return f"'{line}'" if short else f"'{line[:60]}...' ({len(value):,} characters)"
    text = printable(_Short().repr(value)).replace("\n", " ")
    return text if len(text) <= 100 else f"{text[:60]}...{text[-16:]}"


class _Short(reprlib.Repr):
    """Python's own way to show a value, of a length for one line."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 60
        self.maxdict = self.maxlist = self.maxtuple = 4
        self.maxlevel = 3

    def repr_int(self, value: int, level: int) -> str:
        """Python refuses to write out a number of thousands of digits."""
        digits = int(value.bit_length() * 0.30103)
        return f"a number of {digits:,} digits" if digits > 60 else super().repr_int(value, level)


def shortened(text: object, most: int = 200) -> str:
    """A text or path as it is in printable characters; the middle of a long one is left out."""
    words = clean(text)
    return words if len(words) <= most else f"{words[: most - 90]}...{words[-80:]}"


def write_atomic(path: Path, data: bytes | memoryview, *, durable: bool = True) -> None:
    """Write a file whole or not at all.  Raises LadderError, as `replacing` does."""
    with replacing(path, durable=durable) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[BufferedRandom]:
    """A file to write, whole or not at all: temporary file, fsync, rename, fsync of the folder.

    Without `durable` no fsync is waited for: a power cut may cost the file, a kill may not.
    Raises LadderError that names the path when the disk is full or read-only.
    """
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "x+b") as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            _drop(temporary)
            raise
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def _beside(path: Path) -> Path:
    """A name for a temporary file in the same folder, which LITTER matches."""
    return path.with_name(f".{path.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _drop(path: Path) -> None:
    """Remove a file, if that can be done."""
    with contextlib.suppress(OSError):
        path.unlink()


def _sync_folder(path: Path) -> None:
    """Let a rename outlast a power cut, where the file system can promise that of a folder."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(folder)


def point_to(latest: Path, name: str) -> None:
    """Make `latest` name the folder beside it in one step, so that it is never missing.

    It is a symbolic link, or where the file system has none (exFAT), a file with the name in it.
    Raises LadderError when it cannot be written.
    """
    if pointed_at(latest) == name:
        return
    temporary = _beside(latest)
    try:
        temporary.symlink_to(name)
        temporary.replace(latest)
    except OSError:
        # Whatever forbids links, if it forbids files too, then the next line says so.
        _drop(temporary)
        write_atomic(latest, f"{name}\n".encode("utf-8", "surrogateescape"))


def pointed_at(latest: Path) -> str | None:
    """The name of the folder beside `latest` that it points to, or None where it names none."""
    try:
        if latest.is_symlink():
            name = str(latest.readlink())
        else:
            data = read_regular(latest, limit=4096) or b""
            name = data.decode("utf-8", "surrogateescape").removesuffix("\n")
        plain = name not in ("", ".", "..") and "/" not in name and "\0" not in name
        return name if plain and latest.with_name(name).is_dir() else None
    except (OSError, LadderError):
        return None


def unreadable(path: Path, error: OSError) -> LadderError:
    """The error for a path that cannot be read: DamagedError only where the path itself is wrong.

    A lack of descriptors, of memory, of rights or of the disk's answer says nothing about a file.
    """
    if error.errno in _MISSING:
        return DamagedError(f"{path} cannot be read: {error.strerror}")
    advice = _ADVICE.get(error.errno or 0, "look after its disk, and run again")
    return LadderError(f"cannot read {path}: {error.strerror}; {advice}")


def unwritable(path: Path, error: OSError) -> CommonError:
    """The error for a path that cannot be written, with what to do about it."""
    advice = _ADVICE.get(error.errno or 0, "move away what is there, or set STEPLADDER_DATA")
    return CommonError(f"cannot write {path}: {error.strerror}; {advice}")
