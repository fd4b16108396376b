"""Receiving a file over HTTP, going on where an earlier try broke off, and naming it by its
content.
"""

import hashlib
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

PIECE = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte


def receive(url: str, partial: Path) -> bool:
    """Appends to `partial` what the host still has to give; False if it broke off.

    Raises:
        urllib.error.HTTPError: the host refuses; 416 where nothing lies behind the end of what is
        here. OSError: of the network or of the disk.
    """
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if "text/html" in response.headers.get("Content-Type", ""):
            raise urllib.error.URLError("the host answers with a page instead of the file")
        if response.status != 206:  # it does not continue, so it begins again
            start = 0
        left = int(response.headers.get("Content-Length") or 0)
        received = 0
        bar = tqdm(
            total=start + left or None,
            initial=start,
            unit="B",
            unit_scale=True,
            desc=partial.stem,
            file=sys.stderr,
        )
        with bar, open(partial, "ab" if start else "wb") as file:
            while piece := response.read(PIECE):
                file.write(piece)
                received += len(piece)
                bar.update(len(piece))
    return received == left or left == 0


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file; "git" is SHA-1 of its size and content, as git names it."""
    state = (
        hashlib.sha1(b"blob %d\0" % path.stat().st_size)
        if algorithm == "git"
        else hashlib.new(algorithm)
    )
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            state.update(piece)
    return state.hexdigest()
