"""Tar: the regular files of a tar archive, whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tasks.images.packed import Readable

MAX_MEMBERS = 6_000_000  # files, folders and what goes before them
MAX_FILE = 256_000_000  # bytes of one file
PIECE = 65_536  # bytes read at a time
MAX_MORE = 4_000_000  # bytes of what is told of a file beside its content, as macOS's attributes
FILES = (b"0", b"\0", b"7")  # 7: contiguous on disk, which today means nothing
MORE = (b"x", b"g", b"L", b"K", b"V")


def tar_members(file: Readable, first: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each regular file of a tar archive (POSIX.1-2001 ustar and pax, GNU names).

    Folders are passed over; anything else, links and devices above all, raises ValueError.
    first: the first header, which has been read already.
    """
    extended: dict[str, str] = {}
    for number in range(MAX_MEMBERS):
        header = _exactly(file, 512) if number else first
        if header == bytes(512):
            file.read(PIECE)  # the padding; at the end what it is packed in is checked
            return
        if not is_header(header):
            raise ValueError("a header of the tar archive is damaged")
        kind, size = header[156:157], _number(header[124:136])
        if kind in MORE:
            if not 0 <= size <= MAX_MORE:
                raise ValueError(f"it tells more than {MAX_MORE:,} bytes of one file's attributes")
            extended |= _more(kind, _exactly(file, size + -size % 512)[:size])
            continue
        name = _text(header[:100])
        if header[257:263] == b"ustar\0" and header[345]:
            name = f"{_text(header[345:500])}/{name}"
        name, size = extended.get("path", name), int(extended.get("size", size))
        is_folder = kind == b"5" or (kind == b"\0" and name.endswith("/"))
        is_sparse = any(key.startswith("GNU.sparse") for key in extended)
        if not is_folder and (kind not in FILES or is_sparse):
            raise ValueError(f"{name[:200]!r} is a link or a device, no file; pack it without")
        if not 0 <= size <= (0 if is_folder else MAX_FILE):
            raise ValueError(f"{name[:200]!r} is too large")
        extended = {}
        if not is_folder:
            yield name, _exactly(file, size + -size % 512)[:size]
    raise ValueError("it has too many members")


def _more(kind: bytes, body: bytes) -> dict[str, str]:
    """What a member tells of the next one, as pax names it."""
    if kind in (b"K", b"V"):  # a link's target, or the archive's label
        return {}
    if kind == b"L":
        return {"path": _text(body)}
    more = _pax(body)
    if kind == b"g" and more.keys() & {"path", "size"}:
        raise ValueError("its global header renames every file")
    return more if kind == b"x" else {}


def is_header(header: bytes) -> bool:
    """Whether 512 bytes are a header of a tar archive: they hold their own sum."""
    digits = header[148:156].strip(b" \0")
    if len(header) < 512 or not re.fullmatch(b"[0-7]+", digits):
        return False
    return sum(header) - sum(header[148:156]) + 8 * ord(" ") == int(digits, 8)


def _exactly(file: Readable, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _number(field: bytes) -> int:
    """A number of a tar header: octal text, or big-endian with the first bit set."""
    if field[0] & 0x80:
        return int.from_bytes(field) - (0x80 << 8 * (len(field) - 1))
    digits = field.strip(b" \0") or b"0"
    if not re.fullmatch(b"[0-7]+", digits):
        raise ValueError("a header of the tar archive is damaged")
    return int(digits, 8)


def _text(field: bytes) -> str:
    try:
        return field.split(b"\0", 1)[0].decode()
    except UnicodeDecodeError:
        raise ValueError(f"the name {ascii(field[:60])[1:]} is not UTF-8") from None


def _pax(body: bytes) -> dict[str, str]:
    """The records of an extended header, each of them "LENGTH KEY=VALUE" and a line feed."""
    records = {}
    at = 0
    while at < len(body):
        digits = body[at : at + 10].partition(b" ")[0]
        length = int(digits) if re.fullmatch(b"[0-9]{1,9}", digits) else 0
        if not len(digits) < length <= len(body) - at:
            raise ValueError("an extended header is damaged")
        key, _, value = body[at + len(digits) + 1 : at + length - 1].partition(b"=")
        records[key.decode(errors="replace")] = value.decode(errors="replace")
        at += length
    if not re.fullmatch("[0-9]{1,20}", records.get("size", "0")):
        raise ValueError("an extended header is damaged")
    return records
