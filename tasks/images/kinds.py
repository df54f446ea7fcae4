"""Kinds: what a file is by its suffix and by its first bytes, and what to do with what is none."""

from __future__ import annotations

import codecs
import re

from tasks.images.plain import SIGNATURE

JPEG_START = b"\xff\xd8\xff"
SUFFIXES = {  # of the images that are read, and what each says that a file is
    ".png": "a PNG",
    **dict.fromkeys((".jpg", ".jpeg"), "a JPEG"),
    ".webp": "a WebP image",
    ".bmp": "a BMP image",
    ".gif": "a GIF image",
    **dict.fromkeys((".tif", ".tiff"), "a TIFF image"),
}
# A pattern of a file's first bytes, and what to call it
KINDS = [
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
    (rb"....ftyp|RIFF....AVI ", "a video"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL image"),
    (rb"\0\0[\x01\x02]\0[^\0]\0", "an icon"),
    (rb"8BPS", "a Photoshop file"),
    (rb"\x8a[MJ]NG\r\n\x1a\n", "an MNG animation"),
    (rb"P[1-7]\s", "a PNM image"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"\x89HDF", "an HDF5 file"),
    (rb"PAR1", "a Parquet file"),
    (rb"ARROW1", "an Arrow file"),
    (rb"\x80[\x02-\x05]", "a Python pickle"),
    (rb"\0\0\x08[\x01-\x04]", "an idx file, as MNIST's first archives hold"),
    (rb"SQLite format 3", "an SQLite database"),
    (rb"\0\x05\x16[\0\x07]", "a resource fork of macOS"),
    (rb"%PDF", "a PDF file"),
    (rb"%!PS", "a PostScript file"),
    (rb"\x1f\x8b", "packed with gzip"),
    (rb"BZh\d", "packed with bzip2"),
    (rb"\xfd7zXZ", "packed with xz"),
    (rb"\x28\xb5\x2f\xfd", "packed with Zstandard"),
    (rb"\x04\x22\x4d\x18", "packed with LZ4"),
    (rb"\x1f\x9d", "packed with compress"),
    (rb"LZIP", "packed with lzip"),
    (rb"\]\0\0", "packed with the old LZMA"),
    (rb"PK\x03\x04", "a zip archive"),
    (rb"PK[\x01-\x08]", "a part of a zip archive"),
    (rb"7z\xbc\xaf", "a 7z archive"),
    (rb"Rar!", "a RAR archive"),
    (rb".{257}ustar", "a tar archive"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|!--|html|head|body)", "a web page"),
    (rb"(?i)(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype svg|svg)", "an SVG"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(\?xml|error)", "an XML file"),
    (rb"(\xef\xbb\xbf)?\s*[{\[]\s*[\"{\[]", "JSON text"),
    (rb"\x89PNG(\n|\r\r|\r\n\x1a\r|\r\x1a)|(\t|\xc2\x89|\xef\xbf\xbd)PNG", "an image sent as text"),
    (rb"\xc3\xbf\xc3\x98|(\xef\xbf\xbd){3}", "an image sent as text"),
    (rb"\0{16}", "blank (zero bytes where an image begins)"),
]  # fmt: skip
TEXTS = ("a web page", "an XML file", "JSON text")  # as servers send them instead
REMEDY = {
    "a Git LFS pointer": "run `git lfs pull` in its folder to bring the image",
    "a git-annex pointer": "run `git annex get` in its folder to bring the image",
    "an image sent as text": "bring it again as binary, or remove it",
    **dict.fromkeys(
        (kind for _, kind in KINDS if "packed" in kind or "archive" in kind),
        "unpack it or remove it",
    ),
    **dict.fromkeys(
        (*TEXTS, "a text", "blank (zero bytes where an image begins)"),
        "bring the image again or remove it",
    ),
}


def of_suffix(name: str) -> str:
    """What a file's name says that it is; "" for no image that is read."""
    return SUFFIXES.get(name[name.rfind(".") :].lower(), "")


def kind_of(data: bytes) -> str:
    """What a file is, by its first bytes; "" for what nobody knows."""
    start = data[:1024]
    found = (kind for pattern, kind in KINDS if re.match(pattern, start, re.DOTALL))
    return next(found, "a text" if _is_text(start) else "")


def _is_text(start: bytes) -> bool:
    """Whether bytes are UTF-8 of letters that can be seen; the last one may be cut."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(start)
    except UnicodeDecodeError:
        return False
    return bool(text) and all(c.isprintable() or c.isspace() for c in text)
