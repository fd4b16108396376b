"""Real video files and small configs for the data tests."""

import struct
import zlib

import av
import numpy as np
import pytest

from mebt_jax.config import Config, default_config, from_config_dict
from mebt_jax.data.builder import RecordSettings

CODECS = {
    ".mp4": "libx264",
    ".mkv": "ffv1",
    ".avi": "mpeg4",
    ".mov": "mpeg4",
    ".webm": "libvpx-vp9",
    ".gif": "gif",
}
PIXELS = {"gif": "rgb8", "ffv1": "bgr0"}  # ffv1 in bgr0 keeps every bit


@pytest.fixture
def write_video():
    """write_video(path, frames uint8 [F, h, w, 3], rate=25, rotation=None, options=None) -> path,
    format by its suffix.
    """

    def write(path, frames, rate=25, rotation=None, options=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        codec = CODECS[path.suffix]
        with av.open(str(path), "w", options=options or {}) as container:
            stream = container.add_stream(codec, rate=rate)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = PIXELS.get(codec, "yuv420p")
            stream.bit_rate = 4_000_000
            if rotation is not None:
                stream.set_display_rotation(rotation)
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture
def quarters():
    """quarters(num_frames, height, width): red, green / blue, white quarters that get darker by 4
    each frame.
    """

    def draw(num_frames, height=48, width=64):
        image = np.full((height, width, 3), 255, np.uint8)
        image[: height // 2, : width // 2] = (255, 0, 0)
        image[: height // 2, width // 2 :] = (0, 255, 0)
        image[height // 2 :, : width // 2] = (0, 0, 255)
        return np.stack(
            [np.where(image > 0, 255 - 4 * i, 0).astype(np.uint8) for i in range(num_frames)]
        )

    return draw


@pytest.fixture
def make_config():
    """make_config(frames=..., ...): clips of 8 frames of 16x16, with these fields of config.data
    changed.
    """

    def make(**fields) -> Config:
        config = default_config()
        config.data.update(
            dict(resolution=16, frames=8, record_frames=24, train_clips=64, validation_clips=16)
            | fields
        )
        return from_config_dict(config)

    return make


@pytest.fixture
def record_settings():
    """record_settings(path, span=..., ...): records of at most 12 frames for clips of 5."""

    def make(path, **fields) -> RecordSettings:
        values = dict(
            source="folder",
            path=str(path),
            resolution=16,
            jpeg_quality=95,
            record_frames=12,
            span=5,
            validation_fraction=0.25,
            seed=0,
        )
        return RecordSettings(**values | fields)

    return make


@pytest.fixture
def write_rar():
    """write_rar(path, {name: content}): a RAR 3 archive, as UCF101.rar is one, whose files are
    stored as they are.
    """

    def block(kind, flags, fields, name=b""):
        head = struct.pack("<BHH", kind, flags, 7 + len(fields) + len(name)) + fields + name
        return struct.pack("<H", zlib.crc32(head) & 0xFFFF) + head

    def write(path, files):
        with path.open("wb") as file:
            file.write(b"Rar!\x1a\x07\x00" + block(0x73, 0, bytes(6)))
            for name, content in files.items():
                fields = struct.pack(
                    "<IIBIIBBHI",
                    len(content),
                    len(content),
                    3,
                    zlib.crc32(content),
                    0x21 << 16,
                    20,
                    0x30,
                    len(name),
                    0o100644 << 16,
                )  # sizes, Unix, checksum, 1980-01-01, version, stored, mode
                file.write(block(0x74, 0x8000, fields, name.encode()) + content)
            file.write(block(0x7B, 0x4000, b""))
        return path

    return write
