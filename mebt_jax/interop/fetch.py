"""Fetches published weights, goes on where an earlier fetch was cut short, and checks the file:

    python -m mebt_jax.interop.fetch [NAME] [--folder DIR] [--from-file FILE]

Without NAME it lists the names. With --from-file it checks a file that was fetched by hand, and
copies it into the folder.
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
    """The checked file of `name` in `folder`, which is created.

    Raises:
        UserError: there is no such name, the host does not give the file, or it is another file
            than the published one.
    """
    if name not in weights:
        raise UserError(f"There are no weights named {name!r}; the names are {', '.join(weights)}.")
    published = weights[name]
    target, partial = folder / published.file, folder / f"{published.file}.part"
    if target.exists():
        check(target, name, published)
        say(f"{target} is there already and is what was published.")
        return target
    if from_file is not None:
        if not from_file.is_file():
            raise UserError(
                f"There is no file {from_file}; give the path of the file that you fetched."
            )
        check(from_file, name, published)
        with_disk(
            folder,
            lambda: (
                folder.mkdir(parents=True, exist_ok=True),
                shutil.copyfile(from_file, partial),
            ),
        )
    else:
        if published.by_hand:
            raise UserError(
                f"{name} lies in a folder that only a person can choose from; "
                f"{by_hand(name, published)}"
            )
        download(name, published, partial)
        try:
            check(partial, name, published)
        except UserError:
            partial.unlink()  # a wrong file must not be continued
            raise
    os.replace(partial, target)
    say(f"{target}: {published.purpose}; licence: {published.licence}.")
    return target


def download(name: str, published: Weights, partial: Path) -> None:
    """Fetches the rest of the file into `partial`."""
    with_disk(partial.parent, lambda: partial.parent.mkdir(parents=True, exist_ok=True))
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if receive(published.url, partial):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"the host says {error.code} {error.reason}"
            if error.code == 416:  # the partial file already has the whole length
                return
            if error.code in (401, 403, 404, 410):
                break
        except OSError as error:  # of the network or of the disk
            reason = str(getattr(error, "reason", error))
        say(f"{name}: {reason}, attempt {attempt} of {ATTEMPTS}")
    rest = ""
    if partial.exists():
        rest = f"{partial.stat().st_size:,} bytes are kept for the next attempt; "
    raise UserError(
        f"Could not fetch {name} ({reason}); {rest}run the same command again, or "
        f"{by_hand(name, published)}"
    )


def check(path: Path, name: str, published: Weights) -> None:
    """Raises UserError if size or digest differ from the published ones."""
    size = path.stat().st_size
    if published.size and size != published.size:
        raise UserError(
            f"{path} has {size:,} bytes, but the published {published.file} has "
            f"{published.size:,}; {by_hand(name, published)}"
        )
    algorithm, _, expected = published.digest.partition(":")
    actual = digest(path, algorithm or "sha256")
    if not actual.startswith(expected):
        raise UserError(
            f"{path} is not the published {published.file}: its {algorithm} is {actual} instead of "
            f"{expected}; {by_hand(name, published)}"
        )
    if not expected:
        say(
            f"{path} has sha256 {actual}; none is published to compare it with, but the converter "
            "checks the content."
        )


def by_hand(name: str, published: Weights) -> str:
    return (
        f"fetch {published.file} by hand from {published.page} and run `python -m "
        f"mebt_jax.interop.fetch {name} --from-file FILE`."
    )


def with_disk(folder: Path, write: Callable[[], Any]) -> None:
    """Runs `write`; turns the error of a full or read-only disk into a UserError."""
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
                f"{name:14s} {published.purpose} ({published.licence})"
                for name, published in WEIGHTS.items()
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
