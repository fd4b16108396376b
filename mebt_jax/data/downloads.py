"""Downloads a file over HTTP, from where an earlier attempt broke off, and computes digests of
files.
"""

import hashlib
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

CHUNK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte


def receive(url: str, partial: Path) -> bool:
    """Appends to `partial` the bytes of the file that it lacks; False if the connection broke off.

    Raises:
        urllib.error.HTTPError: the host refuses; 416 if `partial` already has the whole length.
        OSError: of the network or of the disk.
    """
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if "text/html" in response.headers.get("Content-Type", ""):
            raise urllib.error.URLError("the host answers with a page instead of the file")
        if response.status != 206:  # the host sends the file from its beginning
            start = 0
        expected = int(response.headers.get("Content-Length") or 0)
        received = 0
        bar = tqdm(
            total=start + expected or None,
            initial=start,
            unit="B",
            unit_scale=True,
            desc=partial.stem,
            file=sys.stderr,
        )
        with bar, open(partial, "ab" if start else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                received += len(chunk)
                bar.update(len(chunk))
    return received == expected or expected == 0


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file; "git" is SHA-1 of its size and content, the name that git gives it."""
    state = (
        hashlib.sha1(b"blob %d\0" % path.stat().st_size)
        if algorithm == "git"
        else hashlib.new(algorithm)
    )
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            state.update(chunk)
    return state.hexdigest()
