"""Fetches published weights, goes on where a fetch was cut short, and checks what came:

    python -m mebt_jax.interop.fetch [NAME] [--folder DIR] [--from-file FILE]

Without a name it lists them. With --from-file a file that was fetched by hand is checked and put in
its place.
"""

import argparse
import os
import shutil
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mebt_jax.data.downloads import digest, receive
from mebt_jax.errors import UserError
from mebt_jax.interop.weights import WEIGHTS, Weights
from mebt_jax.runtime.telemetry import say

FOLDER = Path("~/.cache/mebt_jax/weights")
ATTEMPTS = 3


def fetch(
    name: str, folder: Path, from_file: Path | None = None, weights: dict[str, Weights] = WEIGHTS
) -> Path:
    """The checked file of `name` below `folder`, which is made.

    Raises:
        UserError: there is no such name, the host does not give the file, or it is another file
            than the published one.
    """
    if name not in weights:
        raise UserError(f"There are no weights named {name!r}; the names are {', '.join(weights)}.")
    wanted = weights[name]
    target, partial = folder / wanted.file, folder / f"{wanted.file}.part"
    if target.exists():
        check(target, name, wanted)
        say(f"{target} is there already and is what was published.")
        return target
    if from_file is not None:
        if not from_file.is_file():
            raise UserError(
                f"There is no file {from_file}; give the path of the file that you fetched."
            )
        check(from_file, name, wanted)
        with_disk(
            folder,
            lambda: (
                folder.mkdir(parents=True, exist_ok=True),
                shutil.copyfile(from_file, partial),
            ),
        )
    else:
        if wanted.by_hand:
            raise UserError(
                f"{name} lies in a folder that only a person can choose from; "
                f"{by_hand(name, wanted)}"
            )
        download(name, wanted, partial)
        try:
            check(partial, name, wanted)
        except UserError:
            partial.unlink()  # what is not the right file cannot be continued
            raise
    os.replace(partial, target)
    say(f"{target}: {wanted.purpose}; licence: {wanted.licence}.")
    return target


def download(name: str, wanted: Weights, partial: Path) -> None:
    """Fetches into `partial`, from where it ends."""
    with_disk(partial.parent, lambda: partial.parent.mkdir(parents=True, exist_ok=True))
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if receive(wanted.url, partial):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"the host says {error.code} {error.reason}"
            if error.code == 416:  # nothing lies behind the end of what is here
                return
            if error.code in (401, 403, 404, 410):
                break
        except OSError as error:  # of the network or of the disk
            reason = str(getattr(error, "reason", error))
        say(f"{name}: {reason}, attempt {attempt} of {ATTEMPTS}")
    kept = (
        f"{partial.stat().st_size:,} bytes are kept for the next try; " if partial.exists() else ""
    )
    raise UserError(
        f"Could not fetch {name} ({reason}); {kept}run the same command again, or "
        f"{by_hand(name, wanted)}"
    )


def check(path: Path, name: str, wanted: Weights) -> None:
    """Raises UserError if size or digest are not the published ones."""
    size = path.stat().st_size
    if wanted.size and size != wanted.size:
        raise UserError(
            f"{path} has {size:,} bytes, but the published {wanted.file} has {wanted.size:,}; "
            f"{by_hand(name, wanted)}"
        )
    algorithm, _, expected = wanted.digest.partition(":")
    found = digest(path, algorithm or "sha256")
    if not found.startswith(expected):
        raise UserError(
            f"{path} is not the published {wanted.file}: its {algorithm} is {found} instead of "
            f"{expected}; "
            f"{by_hand(name, wanted)}"
        )
    if not expected:
        say(
            f"{path} has sha256 {found}; none is published to compare it with, the converter "
            "checks what it holds."
        )


def by_hand(name: str, wanted: Weights) -> str:
    return (
        f"fetch {wanted.file} by hand from {wanted.page} and run `python -m mebt_jax.interop.fetch "
        f"{name} --from-file "
        f"FILE`."
    )


def with_disk(folder: Path, write: Callable[[], Any]) -> None:
    """Runs `write`, with a full or unwritable disk as one sentence."""
    try:
        write()
    except OSError as error:
        raise UserError(
            f"Could not write to {folder} ({error.strerror}); free some space or choose another "
            "--folder."
        ) from error


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mebt_jax.interop.fetch", description="Fetches published weights."
    )
    parser.add_argument("name", nargs="?", help=", ".join(WEIGHTS))
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help=f"where the file goes; default {FOLDER}"
    )
    parser.add_argument("--from-file", type=Path, help="a file that was fetched by hand")
    given = parser.parse_args(arguments)
    if given.name is None:
        print(
            "\n".join(
                f"{name:14s} {wanted.purpose} ({wanted.licence})"
                for name, wanted in WEIGHTS.items()
            )
        )
        return
    try:
        target = fetch(given.name, given.folder.expanduser(), given.from_file)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    also = WEIGHTS[given.name].convert
    say(f"Next: python -m mebt_jax.interop.convert {target} --out DIR {also}".rstrip())


if __name__ == "__main__":
    main()
