"""Where results of steps are kept: one folder an address, there when it is whole.

In a store, `<address>/` holds what the step wrote, and `step.json`: what it was made from, on what,
in how long, with the digest of each file. `.<address>.*` is being made, was left behind by a killed
process, or was found damaged. `.locks/<address>` is held while a step is made, so that two runs do
not make it twice.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock

from treft.errors import DataError
from treft.files import write_whole
from treft.study.digests import file_digest
from treft.study.machine import this_machine

logger = logging.getLogger(__name__)

RECORD = "step.json"
"""What each result says of itself."""


class Store:
    """Results by address in one folder, which may be shared by processes and machines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, address: str) -> Path:
        """Folder of a result, there or not."""
        return self.folder / address

    def record(self, address: str) -> dict[str, Any] | None:
        """What `step.json` says of a result; None unless all of it is there, undamaged."""
        folder = self.path(address)
        try:
            record = json.loads((folder / RECORD).read_text("utf-8"))
            whole = record["address"] == address and all(
                file_digest(folder / name) == digest for name, digest in record["files"].items()
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return record if whole else None

    def stands(self, address: str) -> bool:
        """Whether a result is there, undamaged."""
        return self.record(address) is not None

    def make(
        self, address: str, about: Mapping[str, Any], fill: Callable[[Path], None]
    ) -> float | None:
        """Make a result unless it stands; others that want the same one wait.

        Args:
            address: of the result.
            about: goes into its `step.json`.
            fill: writes the result's files into the folder it is given.

        Returns:
            Seconds that it took; None if it stood.
        """
        with FileLock(self._lock_path(address)):
            if self.stands(address):
                return None
            self._clear(address)
            temporary = self.folder / f".{address}.{uuid.uuid4().hex}"
            temporary.mkdir()
            try:
                started = datetime.now(timezone.utc)
                clock = time.monotonic()
                fill(temporary)
                seconds = time.monotonic() - clock
                _finish(temporary, address, about, started, seconds)
                self._move_in(temporary, address)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            return seconds

    def _lock_path(self, address: str) -> Path:
        folder = self.folder / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / address

    def _clear(self, address: str) -> None:
        """Put a damaged result aside and remove what killed processes left; needs the lock."""
        for left in self.folder.glob(f".{address}.*"):
            if not left.name.endswith(".damaged"):
                shutil.rmtree(left, ignore_errors=True)
        folder = self.path(address)
        if folder.exists():
            aside = self.folder / f".{address}.{uuid.uuid4().hex}.damaged"
            logger.warning("%s is damaged; moved to %s and made again", folder, aside.name)
            folder.rename(aside)

    def _move_in(self, temporary: Path, address: str) -> None:
        """Rename, unless a process that did not see our lock was faster (some shared disks)."""
        try:
            temporary.rename(self.path(address))
        except OSError:
            if not self.stands(address):
                raise


def _finish(
    folder: Path,
    address: str,
    about: Mapping[str, Any],
    started: datetime,
    seconds: float,
) -> None:
    """Bring the files to disk, then write `step.json`, which makes the folder whole."""
    if (folder / RECORD).exists():
        raise DataError(f"a step may not write {RECORD} itself.")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    record = {
        "address": address,
        **about,
        "machine": this_machine(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "files": {path.relative_to(folder).as_posix(): file_digest(path) for path in files},
    }
    write_whole(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
