"""Download: what `--from` names, a file or a URL, and the bytes of a URL."""

from __future__ import annotations

import base64
import http.client
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from tasks.caching.basics import LadderError, expand, redacted, shortened, shown
from tasks.caching.stage import Run

TIMEOUT = 30  # seconds without a byte
BROKEN_LINE = (
    *(urllib.error.URLError, http.client.HTTPException, ssl.SSLError),
    *(TimeoutError, ConnectionError, ValueError),
)


def path_or_url(source: str) -> tuple[Path, str]:
    """The path of a file, or the URL, of what --from gives.  Raises LadderError."""
    try:
        parsed = urlsplit(source)
        host = parsed.hostname
    except ValueError as error:
        raise LadderError(f"--from {shown(source)} is no URL ({error})") from None
    if parsed.scheme in ("http", "https") and host:
        return Path(), source
    if parsed.scheme == "file" and host in (None, "", "localhost"):
        return Path(unquote(parsed.path)), ""
    if "://" in source or not source:
        raise LadderError(
            f"--from {shown(source)} cannot be read; give a file's path, or a URL that begins with "
            "http://, https:// or file:///"
        )
    return expand(source), ""


def download(url: str, path: Path, name: str, run: Run) -> None:
    """The bytes of a URL, to a file.  Raises LadderError where they do not come whole."""
    done = 0
    try:
        with (
            urllib.request.urlopen(_request(url), timeout=TIMEOUT) as response,
            open(path, "wb") as file,
        ):
            length = response.headers.get("Content-Length") or ""
            total = int(length) if length.isdecimal() else 0
            while block := response.read(1 << 18):
                file.write(block)
                done += len(block)
                run.progress(done, total, f"downloading {name}")
        problem = f"it broke off after {done} of {total} bytes" if done < total else ""
    except urllib.error.HTTPError as error:
        problem = f"the server says {error.code} {error.reason}"
    except BROKEN_LINE as error:
        is_mistyped = isinstance(error, UnicodeError | http.client.InvalidURL)
        problem = f"{'no URL' if is_mistyped else 'no network'}? {getattr(error, 'reason', error)}"
    if problem:
        words = redacted(" ".join(problem.split()))[:300]
        raise LadderError(
            f"{shortened(redacted(url))} cannot be downloaded ({words}); take it from elsewhere "
            f"with `stepladder fetch {name} --from FILE_OR_URL --sha256 HEX`"
        )


def _request(url: str) -> urllib.request.Request:
    """The request for a URL; user and password in it go to its own host alone, in a header."""
    parsed = urlsplit(url)
    user, at, host = parsed.netloc.rpartition("@")
    path, query = (quote(part, safe="/%:=&?~+!$,;'@()*[]") for part in (parsed.path, parsed.query))
    request = urllib.request.Request(urlunsplit((parsed.scheme, host, path, query, "")))
    if at:
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request
