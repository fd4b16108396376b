"""Arithmetic of clips: value range, temporal windows, square frames, image files. Pure functions.

Between the data pipeline and the tokenizer a video is uint8 [B, F, H, W, 3]; inside the tokenizer
it is float32 in [-0.5, 0.5].
"""

import itertools
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np


def to_float(video: Any) -> Any:
    """uint8 video of any shape, numpy or jax -> float32 in [-0.5, 0.5] (the range of
    mebt/data.py:95).
    """
    return video.astype("float32") / 255.0 - 0.5


def to_uint8(video: Any) -> Any:
    """Float video in [-0.5, 0.5] (values outside are clipped), numpy or jax -> uint8; inverse of
    `to_float`.
    """
    return ((video.astype("float32") + 0.5) * 255.0).round().clip(0, 255).astype("uint8")


def span(frames: int, stride: int) -> int:
    """Number of consecutive video frames from the first to the last of `frames` frames that are
    `stride` apart.
    """
    return (frames - 1) * stride + 1


def window(start: int, frames: int, stride: int) -> slice:
    """The video frames of the clip that begins at frame `start`."""
    return slice(start, start + span(frames, stride), stride)


def square(image: np.ndarray, resolution: int) -> np.ndarray:
    """Centre square of an image, [h, w, 3] uint8 -> [resolution, resolution, 3] uint8; shrinks by
    area, enlarges linearly.

    Cropping before resizing gives the picture of "shorter side resized, then cropped" at less work.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = np.ascontiguousarray(image[top : top + side, left : left + side])
    if side == resolution:
        return image
    interpolation = cv2.INTER_AREA if side > resolution else cv2.INTER_LINEAR
    return cv2.resize(image, (resolution, resolution), interpolation=interpolation)


def encode_image(image: np.ndarray, quality: int) -> bytes:
    """[h, w, 3] uint8 RGB -> content of a JPEG file; with quality 0 of a BMP file, which is
    lossless.
    """
    suffix, options = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality]) if quality else (".bmp", [])
    encoded, content = cv2.imencode(suffix, image[..., ::-1], options)
    if not encoded:
        raise RuntimeError(f"OpenCV could not encode an image of shape {image.shape} as {suffix}.")
    return content.tobytes()


def decode_image(content: bytes) -> np.ndarray | None:
    """Content of an image file of any format OpenCV reads -> [h, w, 3] uint8 RGB; None if it is not
    an image.
    """
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode_images(contents: Sequence[bytes]) -> np.ndarray:
    """F image files of one size -> uint8 [F, H, W, 3] RGB."""
    images = (
        cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) for content in contents
    )
    first = next(images)
    video = np.empty((len(contents), *first.shape), np.uint8)
    for frame, image in zip(video, itertools.chain([first], images)):
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=frame)
    return video
