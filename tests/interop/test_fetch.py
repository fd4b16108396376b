"""Fetching from a local host that breaks off, cannot continue, answers with pages, or sends another
file.
"""

import dataclasses
import hashlib
import http.server
import re
import threading

import numpy as np
import pytest

from mebt_jax.errors import UserError
from mebt_jax.interop import fetch as fetch_module
from mebt_jax.interop.fetch import fetch
from mebt_jax.interop.weights import WEIGHTS, Weights

CONTENT = np.random.default_rng(0).bytes(300_000)


class Host(http.server.BaseHTTPRequestHandler):
    """/good sends the file, /broken ends after 100000 bytes of every answer, /fresh ignores ranges,
    /page is a page.
    """

    requests = []

    def do_GET(self):
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        self.requests.append((self.path, start))
        if self.path == "/gone":
            self.send_error(404)
            return
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:] if self.path != "/fresh" else CONTENT
        self.send_response(206 if start and self.path != "/fresh" else 200)
        self.send_header(
            "Content-Type", "text/html" if self.path == "/page" else "application/octet-stream"
        )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:100_000] if self.path == "/broken" else body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def host():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def weights(host):
    def at(path, **changes):
        Host.requests.clear()
        base = Weights(
            "w.pt",
            f"{host}/{path}",
            "https://example.org/page",
            "MIT",
            "a test",
            "",
            size=len(CONTENT),
            digest="sha256:" + hashlib.sha256(CONTENT).hexdigest(),
        )
        return {"w": dataclasses.replace(base, **changes)}

    return at


@pytest.mark.parametrize("path, starts", [("good", [0]), ("broken", [0, 100_000, 200_000])])
def test_a_broken_fetch_goes_on_where_it_ended(weights, tmp_path, path, starts):
    assert fetch("w", tmp_path / "new", weights=weights(path)).read_bytes() == CONTENT
    assert [start for _, start in Host.requests] == starts
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["w.pt"]
    fetch("w", tmp_path / "new", weights=weights(path))
    assert Host.requests == []


def test_the_next_command_goes_on_and_a_host_without_ranges_begins_again(
    weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(fetch_module, "ATTEMPTS", 1)
    with pytest.raises(
        UserError,
        match="100,000 bytes are kept for the next attempt; run the same command again, or fetch "
        "w.pt by hand from https://example.org/page and run .*fetch w --from-file FILE",
    ):
        fetch("w", tmp_path, weights=weights("broken"))
    assert fetch("w", tmp_path, weights=weights("good")).read_bytes() == CONTENT
    assert Host.requests == [("/good", 100_000)]
    # A file that is whole, but has not got its final name because of a kill.
    (tmp_path / "w.pt").rename(tmp_path / "w.pt.part")
    fetch("w", tmp_path, weights=weights("good"))
    (tmp_path / "w.pt").unlink()
    (tmp_path / "w.pt.part").write_bytes(b"other")
    assert fetch("w", tmp_path, weights=weights("fresh")).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "path, changes, words",
    [
        ("gone", {}, "says 404"),
        ("page", {}, "a page instead of the file"),
        ("good", {"size": 5}, "has 300,000 bytes, but"),
        ("good", {"digest": "sha256:00"}, "its sha256 is .* instead of 00"),
        ("good", {"by_hand": True}, "only a person can choose"),
    ],
)
def test_what_cannot_be_fetched_says_what_to_do_by_hand(weights, tmp_path, path, changes, words):
    with pytest.raises(UserError, match=words) as error:
        fetch("w", tmp_path, weights=weights(path, **changes))
    assert "by hand from https://example.org/page" in str(error.value) and not list(
        tmp_path.iterdir()
    )


def test_a_file_that_was_fetched_by_hand_is_checked_and_put_in_its_place(weights, tmp_path):
    (tmp_path / "mine").write_bytes(CONTENT)
    known_by_git = weights(
        "gone", digest="git:" + hashlib.sha1(b"blob 300000\0" + CONTENT).hexdigest()
    )
    assert fetch("w", tmp_path / "folder", tmp_path / "mine", known_by_git).read_bytes() == CONTENT
    (tmp_path / "mine").write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match="is not the published w.pt: its sha256"):
        fetch("w", tmp_path / "other", tmp_path / "mine", weights("gone"))
    with pytest.raises(UserError, match="There is no file"):
        fetch("w", tmp_path / "other", tmp_path / "absent", weights("gone"))
    with pytest.raises(UserError, match="no weights named 'vgqan'; the names are vqgan-ucf101"):
        fetch("vgqan", tmp_path)


def test_the_list_is_complete():
    for name, wanted in WEIGHTS.items():
        assert wanted.url.startswith("https://") and wanted.licence and wanted.purpose, name
        assert re.fullmatch(r"((sha256|git):[0-9a-f]{8,64})?", wanted.digest), name
    assert len({wanted.file for wanted in WEIGHTS.values()}) == len(WEIGHTS)
