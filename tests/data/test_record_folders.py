"""Finished record files and their manifest, whole and damaged."""

import errno

import numpy as np
import pytest

from mebt_jax.data import preparation, record_folders, video_files
from mebt_jax.errors import UserError


@pytest.fixture
def folder(tmp_path, write_video, record_settings):
    """Records of one long video and of two short ones."""
    for name, frames in (("a", 30), ("b", 6), ("c", 6)):
        video = np.random.default_rng(0).integers(0, 255, (frames, 16, 16, 3), dtype=np.uint8)
        write_video(tmp_path / "videos" / f"{name}.mkv", video)
    videos = video_files.find_videos(tmp_path / "videos")
    preparation.write_records(tmp_path / "records", videos, record_settings(tmp_path / "videos"))
    return tmp_path / "records"


def first_file(folder):
    return next(folder.rglob("*train*array_record*"))


def test_whole_records_are_said_to_be_whole(folder):
    counts = record_folders.read_manifest(folder)["records"]
    line = record_folders.check_records(folder)
    assert f"with {sum(counts.values())} records in {folder} are as they were written" in line


def test_a_changed_bit_is_found(folder):
    file = first_file(folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file.name} is not what was written; remove .* anew"):
        record_folders.check_records(folder)


def test_a_missing_file_is_named(folder):
    file = first_file(folder)
    file.unlink()
    with pytest.raises(UserError, match=f"{file.name} is missing; remove .* anew"):
        record_folders.check_records(folder)


@pytest.mark.parametrize("fault", ["count", "content"])
def test_records_must_be_as_many_and_as_sound_as_the_manifest_says(folder, fault):
    manifest = record_folders.read_manifest(folder)
    if fault == "count":
        manifest["records"]["validation"] += 1
        record_folders.write_manifest(folder, manifest)
    with pytest.raises(UserError, match="where its manifest says .*--stage=data again"):
        record_folders.check_records(folder, lambda record: fault == "count")


@pytest.mark.parametrize("content", [None, "{"])
def test_a_manifest_that_cannot_be_read_is_one_sentence(tmp_path, content):
    if content:
        (tmp_path / record_folders.MANIFEST).write_text(content)
    with pytest.raises(UserError, match=f"^Could not read {tmp_path}/manifest.json [^\n]*again.$"):
        record_folders.read_manifest(tmp_path)


def test_only_a_full_disk_becomes_a_sentence(tmp_path):
    with pytest.raises(
        UserError, match=f"No space left in {tmp_path} .*--config.data.prepared_dir"
    ):
        with record_folders.disk_full_as_sentence(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), record_folders.disk_full_as_sentence(tmp_path):
        raise PermissionError(errno.EACCES, "denied")
