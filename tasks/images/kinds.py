"""Kinds: what a file is by its first bytes, and what to do with what was not meant."""

from __future__ import annotations

import codecs
import re

from tasks.images.plain import SIGNATURE

JPEG_START = b"\xff\xd8\xff"
# What is named .png or .jpg and is neither: a pattern of its first bytes, and what to call it
OTHERS = [
    (re.escape(SIGNATURE), "a PNG"),
    (JPEG_START, "a JPEG"),
    (rb"version https://git-lfs\.github\.com/spec/", "a Git LFS pointer"),
    (rb"(\.\.)?/[^\0]*annex/objects/", "a git-annex pointer"),
    (rb"RIFF....WEBP", "a WebP image"),
    (rb"GIF8[79]a", "a GIF image"),
    (rb"BM.{4}\0{4}", "a BMP image"),
    (rb"II[*+]\0|MM\0[*+]", "a TIFF image"),
    (rb"....ftyp(hei[cxs]|hev[cx]|mif1|msf1)", "a HEIC image"),
    (rb"....ftypavi[fs]", "an AVIF image"),
    (rb"....ftyp", "a video"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL image"),
    (rb"\0\0[\x01\x02]\0[^\0]\0", "an icon"),
    (rb"8BPS", "a Photoshop file"),
    (rb"\x8a[MJ]NG\r\n\x1a\n", "an MNG animation"),
    (rb"P[1-7]\s", "a PNM image"),
    (rb"\x93NUMPY", "a NumPy file"),
    (rb"\x89HDF", "an HDF5 file"),
    (rb"\0\x05\x16[\0\x07]", "a resource fork of macOS"),
    (rb"%PDF", "a PDF file"),
    (rb"%!PS", "a PostScript file"),
    (rb"\x1f\x8b", "packed by gzip"),
    (rb"BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18", "packed"),
    (rb"PK\x03\x04|7z\xbc\xaf|Rar!|.{257}ustar", "an archive"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|!--|html|head|body)", "a web page"),
    (rb"(?i)(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype svg|svg)", "an SVG"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(\?xml|error)", "an XML file"),
    (rb"\x89PNG(\n|\r\r|\r\n\x1a\r|\r\x1a)|(\t|\xc2\x89|\xef\xbf\xbd)PNG", "an image sent as text"),
    (rb"\xc3\xbf\xc3\x98|(\xef\xbf\xbd){3}", "an image sent as text"),
    (rb"\0{16}", "blank (zero bytes where an image begins)"),
    (rb"[\t\n\r -~]+\Z", "a text"),
]  # fmt: skip
REMEDY = {
    "a Git LFS pointer": "run `git lfs pull` in its folder to bring the image",
    "a git-annex pointer": "run `git annex get` in its folder to bring the image",
    "packed by gzip": "unpack it or remove it",
    "packed": "unpack it or remove it",
    "an archive": "unpack it or remove it",
    "an image sent as text": "bring it again as binary, or remove it",
    **dict.fromkeys(
        ("blank (zero bytes where an image begins)", "a web page", "an XML file", "a text"),
        "bring the image again or remove it",
    ),
}


def kind_of(data: bytes) -> str:
    """What a file is, by its first bytes; "" for what nobody knows."""
    start = data[:1024]
    found = (name for pattern, name in OTHERS if re.match(pattern, start, re.DOTALL))
    return next(found, "")


# How files begin that people give instead of an archive.
SIGNS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself (`git lfs pull` gets it)"),
    (b"\x28\xb5\x2f\xfd", "packed with Zstandard"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x1f\x8b", "packed with gzip"),
    (b"BZh", "packed with bzip2"),
    (b"\xfd7zXZ", "packed with xz"),
    (b"\x1f\x9d", "packed with compress"),
    (b"\x04\x22\x4d\x18", "packed with LZ4"),
    (b"LZIP", "packed with lzip"),
    (b"]\0\0", "packed with the old LZMA"),
    (b"PK", "a zip archive, or a part of one"),
    (b"\x89PNG", "a single PNG image"),
    (b"\xff\xd8\xff", "a single JPEG image"),
    (b"GIF8", "a single GIF image"),
    (b"RIFF", "a single WebP image or a film"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"\0\0\x08", "an idx file, as MNIST's first archives hold"),
    (b"SQLite format 3", "an SQLite database"),
    (b"%PDF", "a PDF"),
)
TEXTS = (
    ("<!doctype html", "an HTML page, perhaps of a login or an error, instead of the archive"),
    ("<html", "an HTML page, perhaps of a login or an error, instead of the archive"),
    ("<", "XML or HTML text, perhaps of an error, instead of the archive"),
    ("{", "JSON text, perhaps of an error, instead of the archive"),
    ("", "plain text"),
)


def what_begins(start: bytes) -> str:
    """In words, what begins so."""
    if not start:
        return "empty"
    for sign, words in SIGNS:
        if start.startswith(sign):
            return words
    try:
        # By this decoder a letter may be cut at the end.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(start).lstrip().lower()
    except UnicodeDecodeError:
        return "of an unknown kind"
    if any(not c.isprintable() and not c.isspace() for c in text):
        return "of an unknown kind"
    return next(words for sign, words in TEXTS if text.startswith(sign))
