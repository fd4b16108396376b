"""Which videos train and which are held out: the split of the data set, or one by video that
follows from names and a seed.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from mebt_jax.data import builder, record_folders, video_files
from mebt_jax.data.builder import RecordSettings
from mebt_jax.data.video_files import BrokenVideo, Video
from mebt_jax.errors import UserError


def split_videos(
    videos: Sequence[Video], settings: RecordSettings, unfinished: Path
) -> tuple[dict[str, list[Video]], str, list[dict[str, str]]]:
    """(videos of each split, a description of the split, videos left out with their reasons).

    A data set that names videos of both splits keeps its split; videos without a split train. Else
    every video is decoded once, since the fraction to hold out is one of the usable videos. The
    folder `unfinished` keeps the outcome, so that an interrupted preparation need not repeat it.

    Raises:
        UserError: no video can be used.
    """
    given = {
        "train": [video for video in videos if video.split != "validation"],
        "validation": [video for video in videos if video.split == "validation"],
    }
    if all(given.values()):
        return given, "as the data set gives it", []
    checked = unfinished / "checked.json"  # by name: None, or why it cannot be used
    if checked.exists():
        reasons = json.loads(checked.read_text())
    else:
        reasons = check_videos(videos, settings.span)
        record_folders.replace_json(checked, reasons)
    usable = [video for video in videos if reasons[video.name] is None]
    skipped = [
        {"video": name, "reason": reason} for name, reason in reasons.items() if reason is not None
    ]
    if not usable:
        raise none_usable(videos, settings.path, skipped)
    return *hold_out(usable, settings.validation_fraction, settings.seed), skipped


def hold_out(
    videos: Sequence[Video], fraction: float, seed: int
) -> tuple[dict[str, list[Video]], str]:
    """({"train": [...], "validation": [...]}, a description); a video is never in both.

    About `fraction` of the videos, at least one, are held out, in an order that follows from the
    seed and their names. A single video can only train.
    """
    if len(videos) == 1:
        single = "none: the one video is used for training and for validation"
        return {"train": list(videos)}, single
    order = sorted(
        videos, key=lambda video: hashlib.sha256(f"{seed}/{video.name}".encode()).digest()
    )
    count = min(max(1, round(fraction * len(videos))), len(videos) - 1)
    return (
        {"train": order[count:], "validation": order[:count]},
        f"by video, {count} of {len(videos)} held out",
    )


def check_videos(videos: Sequence[Video], span: int) -> dict[str, str | None]:
    """By name: None for a video that can be used, else why not. Decodes each of them once to its
    end.
    """

    def check(video: Video) -> str | None:
        try:
            frames = video_files.count_frames(video)
            return builder.too_short(frames, span) if frames < span else None
        except BrokenVideo as error:
            return str(error)

    with record_folders.threads() as pool:
        reasons = list(
            tqdm(pool.map(check, videos), total=len(videos), desc="checking videos", unit="video")
        )
    return {video.name: reason for video, reason in zip(videos, reasons, strict=True)}


def none_usable(
    videos: Sequence[Video], where: str, skipped: Sequence[dict[str, str]]
) -> UserError:
    """The error that no video of `where` can be used, with the first reasons."""
    reasons = "; ".join(f"{entry['video']}: {entry['reason']}" for entry in skipped[:3])
    more = "; ..." if len(skipped) > 3 else ""
    return UserError(
        f"None of the {len(videos)} videos in {where} can be used ({reasons}{more}); give others, "
        "or choose shorter clips with --config.data.frames and --config.data.frame_stride."
    )
