"""A store that machines share, beside each one's own: what one has computed, others find.

STEPLADDER_REMOTE names it: s3://bucket/prefix, gs://..., az://..., or a folder.

    records/<stage>/<key>.json      what a key stands for, signed where STEPLADDER_REMOTE_KEY is set
    files/<sha256>.arrow | ...      what records name
    listings/<sha256>.arrow         what class folders held, for words of what changed

As a remote cache of Bazel's: what is not here is looked for there, and believed when the record is
of its key and each file's content is of its name.  What is stored here is stored there too, files
first.  Whatever goes wrong with it is told once, and the run goes on without it.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hmac
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tasks.caching import records
from tasks.caching.basics import DamagedError, LadderError, redacted, shown, write_atomic
from tasks.caching.records import canonical, digest_of
from tasks.caching.store import FORMAT, Store

MODES = ("read-write", "read")
_CONNECT, _ANSWER = 3.0, 5.0  # seconds
_SLOWEST = 200_000  # bytes per second; what is slower is no help
_CHUNK = 1 << 20
_LARGEST = 1 << 26  # bytes of a record
Warn = Callable[[str], None]


class _Away(Exception):  # noqa: N818 - no more than that
    """The shared store did not answer while a file here was written."""


class Remote:
    """The shared store, as one process sees it; from many threads at once."""

    def __init__(self, url: str, key: bytes = b"", mode: str = MODES[0]) -> None:
        """Connect at the first use.  Raises LadderError for what is no place or no mode."""
        if mode not in MODES:
            raise LadderError(f"STEPLADDER_REMOTE_MODE {shown(mode)}: give read-write or read")
        self.name = redacted(url)
        self._system, self._root = _connected(url)
        self._key = key
        self._writes = mode == MODES[0]
        self._damaged: set[str] = set()  # files there that are not what their names say
        self._off = False
        self._turn = threading.Lock()

    # What a run does

    def fetch(self, store: Store, stage: str, key: str, warn: Warn) -> None:
        """Bring what a key stands for into the store, if it is not there yet, and is here."""
        path = store.record_path(stage, key)
        if self._off or os.path.lexists(path):
            return
        with self._guarded("cannot be read", warn):
            data = self._read(f"records/{stage}/{key}.json", _LARGEST)
            if data is None:
                return
            try:
                body, listings = self._believed(data, stage, key)
                for name, size in body["files"].items():
                    self._receive(store, name, size)
                for name in listings:
                    self._receive_listing(store, name)
                store.adopt(body)
            except LadderError as error:  # of what is there, or of a disk that is full here
                warn(f"{self.name}: {error}; not used")

    def store(self, store: Store, stage: str, key: str, warn: Warn) -> None:
        """Keep what a key stands for here too: files first, the record last."""
        if self._off or not self._writes:
            return
        with self._guarded("cannot be written", warn):
            self._send(store, stage, key)

    # Upkeep

    def push(self, store: Store) -> int:
        """Send all records that are not here; gives how many.  Raises OSError."""
        there = {path.removeprefix("records/") for path in self._paths("records")}
        sent = 0
        for path in store.record_paths():
            if f"{path.parent.name}/{path.name}" not in there:
                with contextlib.suppress(DamagedError):
                    self._send(store, path.parent.name, path.stem)
                    sent += 1
        return sent

    def pull(self, store: Store, warn: Warn) -> int:
        """Fetch all records that the store lacks; gives how many.  Raises OSError."""
        before = len(store.record_paths())
        for path in self._paths("records"):
            _, stage, name = path.split("/")
            self.fetch(store, stage, name.removesuffix(".json"), warn)
        return len(store.record_paths()) - before

    def clear(self, days: float) -> tuple[int, int]:
        """Remove records that were stored longer ago, then files that none names.

        Gives how many of each.  Files of the last hour stay: their record may be on its way.
        Raises OSError.
        """
        now = datetime.datetime.now(datetime.UTC)
        named: set[str] = set()
        gone = 0
        for path, written in self._dated("records"):
            if now - written > datetime.timedelta(days=days):
                self._system.delete_file(f"{self._root}/{path}")
                gone += 1
            else:
                named |= self._named(self._read(path, _LARGEST) or b"")
        unnamed = 0
        for folder in ("files", "listings"):
            for path, written in self._dated(folder):
                if path not in named and now - written > datetime.timedelta(hours=1):
                    self._system.delete_file(f"{self._root}/{path}")
                    unnamed += 1
        return gone, unnamed

    # Inside

    @contextlib.contextmanager
    def _guarded(self, trouble: str, warn: Warn) -> Iterator[None]:
        """Let what goes wrong with this store cost one warning, and the rest of it."""
        try:
            yield
        except (OSError, ValueError, _Away) as error:  # what pyarrow raises, of networks too
            with self._turn:
                first, self._off = not self._off, True
            if first:
                warn(
                    f"the shared store {self.name} {trouble} ({in_words(error)}): this run goes on "
                    "without"
                )

    def _believed(self, data: bytes, stage: str, key: str) -> tuple[dict[str, Any], list[str]]:
        """A record's body and its listings.  Raises DamagedError for what is not ours."""
        problem = DamagedError(f"the record {key[:12]} of {stage} is damaged, old or of another")
        try:
            whole = json.loads(data)
            body, listings, signature = whole["body"], whole["listings"], whole["signature"]
            if self._key and not hmac.compare_digest(signature, self._signature(body, listings)):
                raise DamagedError(f"the record {key[:12]} of {stage} has no signature of your key")
            sizes = body["files"]
            body = body | {"files": {name: [0] * 4 for name in sizes}, "checked": 0}
            records.insist_on_body(body)
            is_ours = (
                (body["stage"], body["key"], body["format"]) == (stage, key, FORMAT)
                and digest_of(body["ingredients"]) == key
                and digest_of(body["value"]) == body["digest"]
                and all(records.NAME.fullmatch(name) for name in sizes)
                and all(isinstance(size, int) and 0 <= size < 2**48 for size in sizes.values())
                and all(records.LISTING.fullmatch(name) for name in listings)
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise problem from error
        if not is_ours:
            raise problem
        return body | {"files": sizes}, listings

    def _signature(self, body: dict[str, Any], listings: list[str]) -> str:
        return hmac.new(self._key, canonical([body, listings]), "sha256").hexdigest()

    def _send(self, store: Store, stage: str, key: str) -> None:
        """Raises OSError, and DamagedError for what is not whole here."""
        record = store.get(stage, key)
        if record is None:
            return
        body = {**record._asdict(), "stage": stage, "format": FORMAT}
        body["files"] = {name: signature[0] for name, signature in record.files.items()}
        for name in record.files:
            self._write(f"files/{name}", store.files.folder / name)
        digests = {each for of in record.ingredients["inputs"].values() for each in of}
        listings = sorted(
            f"{digest}.arrow"
            for digest in digests
            if (store.root / "listings" / f"{digest}.arrow").exists()
        )
        for name in listings:
            self._write(f"listings/{name}", store.root / "listings" / name)
        signature = self._signature(body, listings) if self._key else ""
        whole = {"body": body, "listings": listings, "signature": signature}
        self._write_chunks(f"records/{stage}/{key}.json", [canonical(whole)])

    def _write(self, path: str, source: Path) -> None:
        """Store a file, unless one of its size is there."""
        size = source.stat().st_size
        info = self._system.get_file_info(f"{self._root}/{path}")
        if info.size == size and path not in self._damaged:
            return
        with source.open("rb") as file:
            self._write_chunks(path, iter(functools.partial(file.read, _CHUNK), b""))
        self._damaged.discard(path)

    def _write_chunks(self, path: str, chunks: Iterable[bytes]) -> None:
        """Write whole or not at all where there are folders; an object appears when it is whole."""
        target = f"{self._root}/{path}"
        folders = self._system.type_name == "local"
        written = f"{target}.{os.getpid()}-{threading.get_ident()}.tmp" if folders else target
        if folders:
            self._system.create_dir(target.rpartition("/")[0])
        with self._system.open_output_stream(written) as stream:
            for chunk in chunks:
                stream.write(chunk)
        if folders:
            self._system.move(written, target)

    def _read(self, path: str, most: int) -> bytes | None:
        """A small file, or None where there is none.  Raises OSError, DamagedError."""
        try:
            with self._system.open_input_stream(f"{self._root}/{path}") as stream:
                data: bytes = stream.read(most + 1)
        except FileNotFoundError:
            return None
        if len(data) > most:
            raise DamagedError(f"{path} is too large")
        return data

    def _receive(self, store: Store, name: str, size: int) -> None:
        """Bring a file to the store's.  Raises OSError, DamagedError for other content."""
        with contextlib.suppress(DamagedError):
            store.files.verify(name, None, 0, thorough=True)
            return
        try:
            with store.files.receiving(name) as file:
                try:
                    self._copy(f"files/{name}", size, file)
                except OSError as error:
                    raise _Away(error) from error
        except DamagedError:
            self._damaged.add(f"files/{name}")
            raise

    def _copy(self, path: str, size: int, file: BinaryIO) -> None:
        deadline = time.monotonic() + _ANSWER + size / _SLOWEST
        try:
            with self._system.open_input_stream(f"{self._root}/{path}") as stream:
                left = size + 1
                while left and (chunk := stream.read(min(_CHUNK, left))):
                    file.write(chunk)
                    left -= len(chunk)
                    if time.monotonic() > deadline:
                        raise OSError(f"too slow: {path} took longer than {_ANSWER:.0f} s")
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing") from None

    def _receive_listing(self, store: Store, name: str) -> None:
        path = store.root / "listings" / name
        if not path.exists() and (data := self._read(f"listings/{name}", _LARGEST)):
            write_atomic(path, data)  # verified by who reads it

    def _named(self, data: bytes) -> set[str]:
        """The files that a record here names."""
        with contextlib.suppress(ValueError, TypeError, KeyError):
            whole = json.loads(data)
            files = {f"files/{name}" for name in whole["body"]["files"]}
            return files | {f"listings/{name}" for name in whole["listings"]}
        return set()

    def _paths(self, folder: str) -> list[str]:
        return [path for path, _written in self._dated(folder)]

    def _dated(self, folder: str) -> list[tuple[str, datetime.datetime]]:
        """What a folder holds under names of ours, and when it was written.  Raises OSError."""
        from pyarrow.fs import FileSelector, FileType

        pattern = {"records": records.RECORD, "listings": records.LISTING, "files": records.NAME}
        selector = FileSelector(f"{self._root}/{folder}", allow_not_found=True, recursive=True)
        return [
            (info.path.removeprefix(f"{self._root}/"), info.mtime)
            for info in self._system.get_file_info(selector)
            if info.type == FileType.File and pattern[folder].fullmatch(info.base_name)
        ]


def shared() -> Remote | None:
    """What the environment names, or nothing.  Raises LadderError."""
    variables = ("STEPLADDER_REMOTE", "STEPLADDER_REMOTE_KEY", "STEPLADDER_REMOTE_MODE")
    url, key, mode = (os.environ.get(each, "") for each in variables)
    return _remote(url, key, mode or MODES[0]) if url else None


def insist_on_shared() -> Remote:
    """What the environment names.  Raises LadderError where it names nothing."""
    if found := shared():
        return found
    raise LadderError("no shared store is named: set STEPLADDER_REMOTE=s3://bucket/prefix")


@functools.lru_cache
def _remote(url: str, key: str, mode: str) -> Remote:
    return Remote(url, key.encode(), mode)


def in_words(error: Exception) -> str:
    """What a file system of pyarrow's says, in one line."""
    return " ".join(str(error).split())[:200]


def complain(text: str) -> None:
    """Warn where nobody watches the run."""
    print(f"stepladder: warning: {text}", file=sys.stderr)


def _connected(url: str) -> tuple[Any, str]:
    """A file system of pyarrow's, patient for seconds, and a folder in it.  Raises LadderError."""
    from pyarrow import fs

    scheme, separator, place = url.partition("://")
    place = place.strip("/")
    if not separator:
        return fs.LocalFileSystem(), str(Path(url).expanduser().absolute())
    if scheme not in ("s3", "gs", "az") or not place:
        raise LadderError(
            f"STEPLADDER_REMOTE {shown(redacted(url))}: give s3://bucket/prefix, gs://bucket/prefix,"
            " az://container/prefix or a folder"
        )
    try:
        if scheme == "s3":
            return _s3(), place
        if scheme == "gs":
            return fs.GcsFileSystem(retry_time_limit=datetime.timedelta(seconds=_ANSWER)), place
        return fs.AzureFileSystem(os.environ["AZURE_STORAGE_ACCOUNT"]), place
    except (AttributeError, KeyError, OSError, ValueError) as error:
        raise LadderError(f"STEPLADDER_REMOTE {shown(redacted(url))}: {error}") from error


def _s3() -> Any:
    from pyarrow import fs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: dict[str, Any] = {}
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        options = {"endpoint_override": host, "scheme": scheme or "https"}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = region
    return fs.S3FileSystem(
        connect_timeout=_CONNECT,
        request_timeout=_ANSWER,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),
        **options,
    )
