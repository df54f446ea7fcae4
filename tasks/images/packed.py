"""Packed: the bytes of a file packed with gzip, bzip2 or xz, read on and on."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from typing import IO, Any, Protocol

PIECE = 65_536  # bytes of the packed file at a time
MAX_MEMORY = 256 << 20  # bytes that unpacking xz may take; its strongest usual setting takes 65 MiB


class Readable(Protocol):
    """What can be read on and on."""

    def read(self, size: int, /) -> bytes:
        """The next bytes; fewer than asked for at the end alone."""


class Packed:
    """The bytes of a file packed with bzip2 or xz; several streams in a row count as one."""

    def __init__(self, file: IO[bytes], begin: Callable[[], Any]) -> None:
        self._file = file
        self._begin = begin
        self._inner = begin()

    def read(self, size: int, /) -> bytes:
        """The next bytes; fewer than asked for at the end alone.  Raises ValueError, EOFError."""
        pieces: list[bytes] = []
        while size > 0 and (piece := self._piece(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _piece(self, size: int) -> bytes:
        while True:
            packed = b""
            if self._inner.eof:
                packed = self._inner.unused_data.lstrip(b"\0")  # xz may pad between streams
                while not packed and (more := self._file.read(PIECE)):
                    packed = more.lstrip(b"\0")
                if not packed:
                    return b""
                self._inner = self._begin()
            elif self._inner.needs_input:
                packed = self._file.read(PIECE)
                if not packed:
                    raise EOFError
            if data := self._unpacked(packed, size):
                return data

    def _unpacked(self, packed: bytes, size: int) -> bytes:
        try:
            return bytes(self._inner.decompress(packed, size))
        except (OSError, lzma.LZMAError) as error:
            if "Memory usage limit" in str(error):
                raise ValueError(f"unpacking it takes over {MAX_MEMORY >> 20} MiB of memory; pack "
                                 "it with a lower setting") from None  # fmt: skip
            raise ValueError(f"it is damaged ({error})") from None


def _bzip2(file: IO[bytes]) -> Readable:
    return Packed(file, bz2.BZ2Decompressor)


def _xz(file: IO[bytes]) -> Readable:
    return Packed(file, lambda: lzma.LZMADecompressor(memlimit=MAX_MEMORY))


PACKED: dict[bytes, tuple[str, Callable[[IO[bytes]], Readable]]] = {
    b"\x1f\x8b": ("gzip", lambda file: gzip.GzipFile(fileobj=file)),
    b"BZh": ("bzip2", _bzip2),
    b"\xfd7zXZ\0": ("xz", _xz),
}
