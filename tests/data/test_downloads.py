"""Digests of files; test_mirrors.py and interop/test_fetch.py download from hosts."""

import hashlib

from mebt_jax.data import downloads


def test_digests_are_those_of_the_usual_programs(tmp_path):
    (tmp_path / "file").write_bytes(b"hello\n")
    assert downloads.digest(tmp_path / "file", "git") == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert downloads.digest(tmp_path / "file") == (
        "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    )


def test_a_file_of_several_chunks_is_read_whole(tmp_path):
    content = bytes(range(256)) * 10_000  # 2.4 MiB
    (tmp_path / "file").write_bytes(content)
    assert downloads.digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()
