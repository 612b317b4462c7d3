"""Where data sets lie on disk, and how a missing file gets there: resumed, checked, never half-done."""

import hashlib
import os
import shutil
import time
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from ..files import file_problem

CHUNK = 1 << 18  # bytes a read
TIMEOUT = 60  # seconds without a byte
PAUSES = (1, 2, 4)  # seconds between tries


class DataError(ValueError):
    """A data file is missing, damaged or foreign; the message names the file and what to do about it."""


def check_file(path: Path) -> None:
    """DataError where nothing can be read from `path`: it is missing, a folder, a pipe or a device."""
    if problem := file_problem(path):
        raise DataError(problem)


class Remote(NamedTuple):
    """A published file and what proves that a copy of it is right."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def data_root(root: str | os.PathLike | None = None) -> Path:
    """The folder that holds the data sets: ``root``, else ``$TINYBITVIT_DATA``, else ``~/.cache/tinybitvit``."""
    base = Path(root or os.environ.get("TINYBITVIT_DATA") or "~/.cache/tinybitvit").expanduser()
    if base.exists() and not base.is_dir():
        raise DataError(f"{base} is a file: root= or $TINYBITVIT_DATA must be the folder that holds the data sets")
    return base


def sha256(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(remote: Remote, folder: Path) -> Path:
    """Download ``remote`` into ``folder`` and return its path there.

    The bytes collect in NAME.part, which becomes NAME only when size and sha256 are right. A cut transfer is resumed
    by the next try, and by the next call. Progress goes to stdout. One process at a time. Raises DataError.
    """
    from http.client import HTTPException  # with urllib below: slower to import than all the rest

    path = folder / remote.name
    part = folder / f"{remote.name}.part"
    by_hand = f"or put {remote.name} into {folder} by hand"
    for pause in (*PAUSES, None):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _transfer(remote, part)
            break
        except (OSError, HTTPException) as error:
            in_vain = isinstance(error, PermissionError) or 400 <= getattr(error, "code", 0) < 500
            if pause is None or in_vain:
                hint = f"run again later (what has arrived is kept in {part} and continued)"
                raise DataError(f"{remote.url} could not be fetched ({error}): {hint}, {by_hand}") from error
            print(f"{remote.name}: {error}; next try in {pause} s", flush=True)
            time.sleep(pause)
    with open(part, "rb") as file:
        right = sha256(file) == remote.sha256
    if not right:
        part.unlink()
        raise DataError(f"{remote.url} sent a file with another sha256 (deleted again): fetch again, {by_hand}")
    part.replace(path)
    return path


def _transfer(remote: Remote, part: Path) -> None:
    """Bring ``part`` from the bytes it has to ``remote.size``; raises OSError or HTTPException when it stays short."""
    from urllib.request import Request, urlopen

    done = part.stat().st_size if part.exists() else 0
    if done == remote.size:
        return
    if done > remote.size:
        done = 0
    if shutil.disk_usage(part.parent).free < remote.size - done:
        raise DataError(f"{part.parent} has no room for {remote.name} ({remote.size / 1e6:.0f} MB): free some space")
    print(f"{remote.name}: fetching {(remote.size - done) / 1e6:.1f} MB from {remote.url}", flush=True)
    request = Request(remote.url, headers={"Range": f"bytes={done}-"} if done else {})
    with urlopen(request, timeout=TIMEOUT) as response:
        if response.status != 206:
            done = 0  # the server ignores Range: from the start
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            part.unlink()
            raise ConnectionError("the server sent another range than it was asked for")
        if response.length is not None and done + response.length != remote.size:
            raise DataError(
                f"{remote.url} is {done + response.length} bytes long instead of {remote.size}: "
                f"fetch {remote.name} elsewhere and put it into {part.parent}"
            )
        with open(part, "ab" if done else "wb") as file:
            start, began, shown = done, time.monotonic(), done
            while done < remote.size and (chunk := response.read(min(CHUNK, remote.size - done))):
                file.write(chunk)
                done += len(chunk)
                seconds = time.monotonic() - began
                if done == remote.size or (done - shown > remote.size / 100 and seconds > 2):
                    shown, rate = done, (done - start) / max(seconds, 1e-3)
                    left = f"{(remote.size - done) / rate:.0f} s left"
                    print(f"{remote.name}: {done / 1e6:.1f} MB, {rate / 1e6:.2f} MB/s, {left}", flush=True)
    if done < remote.size:
        raise ConnectionError(f"the transfer was cut after {done} of {remote.size} bytes")
