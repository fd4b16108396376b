"""Downloading the archives of a set from local hosts that are gone, break off, or send another
file.
"""

import base64
import hashlib
import http.server
import re
import threading
import zipfile

import numpy as np
import pytest

from mebt_jax.data import mirrors, published_sets, sources
from mebt_jax.data.mirrors import Archive
from mebt_jax.errors import UserError

CONTENT = np.random.default_rng(0).bytes(30_000)


class Host(http.server.BaseHTTPRequestHandler):
    """/good gives all, /broken ends after 10000 bytes of every answer, /other is another file of
    that size, else 404.
    """

    requests = []

    def do_GET(self):
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        self.requests.append((self.path, start))
        if self.path not in ("/good", "/broken", "/other"):
            self.send_error(404)
            return
        body = (CONTENT if self.path != "/other" else CONTENT[::-1])[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:10_000] if self.path == "/broken" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def archive():
    """archive(*paths): a file with these mirrors."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    Host.requests.clear()
    urls = f"http://127.0.0.1:{server.server_port}"
    yield lambda *paths: Archive(
        "set.zip",
        tuple(f"{urls}/{path}" for path in paths),
        len(CONTENT),
        hashlib.sha256(CONTENT).hexdigest(),
    )
    server.shutdown()
    server.server_close()
    thread.join()


def test_goes_from_mirror_to_mirror_and_on_from_where_one_broke_off(archive, tmp_path):
    assert mirrors.fetch(archive("gone", "broken", "good"), tmp_path, "").read_bytes() == CONTENT
    assert Host.requests == [("/gone", 0), ("/broken", 0), ("/good", 10_000)]
    mirrors.fetch(archive("gone"), tmp_path, "")  # it is there
    assert len(Host.requests) == 3 and [path.name for path in tmp_path.iterdir()] == ["set.zip"]


def test_another_file_is_refused(archive, tmp_path):
    assert mirrors.fetch(archive("other", "good"), tmp_path, "").read_bytes() == CONTENT
    assert Host.requests == [("/other", 0), ("/good", 0)]


def test_no_mirror_is_one_sentence_that_says_what_to_do(
    tmp_path, archive, make_config, monkeypatch
):
    ucf = published_sets.OFFICIAL["ucf101"]
    monkeypatch.setitem(
        sources.OFFICIAL,
        "ucf101",
        published_sets.dataclasses.replace(ucf, archives=(archive("gone", "broken"),)),
    )
    monkeypatch.setattr(mirrors, "ROUNDS", 1)
    with pytest.raises(
        UserError,
        match="gone: the host says 404.*10,000 bytes are kept.*UCF101.rar.*data.source_dir=DIR",
    ):
        sources.prepare(make_config(source="ucf101"), tmp_path / "run")


def test_unpacks_once_and_says_what_it_cannot(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("../../outside.txt", "words")
    for _ in range(2):
        mirrors.unpack(tmp_path / "a.zip", tmp_path / "to" / "here")
        assert (tmp_path / "to" / "here" / "outside.txt").exists()
        (tmp_path / "a.zip").write_bytes(b"no archive")
    (tmp_path / "b.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match="b.zip is damaged"):
        mirrors.unpack(tmp_path / "b.zip", tmp_path / "there")


# Two files of the lines 000 to 511, packed by the program RAR 3 as one solid stream (rar3-solid.rar
# among the test files of the package rarfile, ISC licence, Marko Kreen).
SOLID_RAR = base64.b64decode(
    "UmFyIRoHADvQcwgADQAAAAAAAAArNHSAkCwAXAAAAAAIAAADoua3xbBmzD4dMwoApIEAAHN0ZXN0MS50eHQAwBEMzP6MnrD+MYGrrLG7QHeoCmTWSzeDwQe8"
    "AeCFku77th0ACCAACIjpeAzSDAdhOkF4S7Nun1IK2sonQLrnC2SKYnH7uACRnlAv2FX/+sZY6+vE14h+VJaHH03s2RZ0kJAsAA4AAAAACAAAA6Lmt8WwZsw+"
    "HTMKAKSBAABzdGVzdDIudHh0AMCxIACIB+vyCmn6/JTe0MQ9ewBABwA="
)


def test_unpacks_rar_archives(tmp_path, write_rar):
    (tmp_path / "solid.rar").write_bytes(SOLID_RAR)
    write_rar(
        tmp_path / "stored.rar",
        {"UCF-101/YoYo/v_YoYo_g01_c01.avi": CONTENT, "UCF-101/empty.avi": b""},
    )
    for name in ("solid", "stored"):
        mirrors.unpack(tmp_path / f"{name}.rar", tmp_path / name)
    for i in (1, 2):
        assert (tmp_path / "solid" / f"stest{i}.txt").read_text() == "".join(
            f"{number:03d}\n" for number in range(512)
        )
    assert (tmp_path / "stored" / "UCF-101" / "YoYo" / "v_YoYo_g01_c01.avi").read_bytes() == CONTENT
    assert (tmp_path / "stored" / "UCF-101" / "empty.avi").read_bytes() == b""


def test_a_rar_that_cannot_be_unpacked_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "UCF101.rar").write_bytes(SOLID_RAR[:-100])
    with pytest.raises(UserError, match="UCF101.rar could not be unpacked .*fetch it again"):
        mirrors.unpack(tmp_path / "UCF101.rar", tmp_path / "there")
    monkeypatch.setattr(mirrors, "rar_programs", dict)
    with pytest.raises(
        UserError, match="UCF101.rar needs one of the programs unrar, 7zz, 7z, bsdtar"
    ):
        mirrors.unpack(tmp_path / "UCF101.rar", tmp_path / "there")
