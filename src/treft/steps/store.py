"""Where results of steps are kept: whole or not at all.

A `Store` has one folder an address. In it, `<address>/` holds what the step wrote, and `step.json`:
what it was made from, on what, in how long, with the digest of each file. `.<address>.*` is being
made, was left behind by a killed process, or was found damaged. `.locks/<address>` is held while a
step is made, so that two runs do not make it twice.

`Steps` keeps the steps of one command in the user's own output folder, one JSON file a step.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from filelock import FileLock

from treft.errors import ConfigError, DataError
from treft.files import file_digest, write_whole

logger = logging.getLogger(__name__)

RECORD = "step.json"
"""What each result says of itself."""
CLAIM = "plan.json"
"""What an output folder of `Steps` says of itself."""
LIBRARIES = ("treft", "torch", "transformers", "peft", "trl")
"""Packages whose versions are noted with a result; they decide no address."""


class Store:
    """Results by address in one folder, which may be shared by processes and machines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, address: str) -> Path:
        """The folder of a result, there or not."""
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
            address: Of the result.
            about: What its `step.json` says besides.
            fill: Writes the result's files into the folder it is given.

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
                started = datetime.now(timezone.utc).isoformat(timespec="seconds")
                clock = time.monotonic()
                fill(temporary)
                seconds = time.monotonic() - clock
                ran = {"started": started, "seconds": round(seconds, 3)}
                _finish(temporary, {"address": address, **about, **_made_on(), **ran})
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


def _finish(folder: Path, record: Mapping[str, Any]) -> None:
    """Bring the files to disk, then write `step.json`, which makes the folder whole."""
    if (folder / RECORD).exists():
        raise DataError(f"a step may not write {RECORD} itself.")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    digests = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    text = json.dumps({**record, "files": digests}, indent=1, ensure_ascii=False)
    write_whole(folder / RECORD, text + "\n")


def _made_on() -> dict[str, Any]:
    """Machine and libraries; the GPUs if this process has used PyTorch."""
    machine: dict[str, str | int] = {
        "name": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        machine["gpus"] = ", ".join(names)
    return {"machine": machine, "libraries": library_versions()}


def _processor() -> str:
    """The processor's name, which only Linux tells in a file."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file if line.startswith("model name"))
    except OSError:
        lines = {}
    return next((name.strip() for name in lines.values()), platform.processor())


def library_versions() -> dict[str, str]:
    """Returns the version by package; an empty one where it is not installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = package_version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def step_path(folder: Path, name: str) -> Path:
    """Returns the file in which `Steps` keeps the result of a step."""
    return folder / "steps" / f"{name}.json"


class Steps:
    """The steps of one command, kept in its output folder: a killed command goes on from there.

    Args:
        folder: New, or begun with the same `settings`.
        settings: All that decides the results, as JSON can hold it.
        what: The folder's `plan.json` is, in words.

    Attributes:
        seconds: Time that each step took, by its name, now or when it was computed.

    Raises:
        ConfigError: The folder holds something else, or was begun with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], what: str) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self._settings = dict(json.loads(json.dumps(settings)))
        self._check(what)

    def claim(self) -> None:
        """Write down whose folder this is, before the first result."""
        path = self.folder / CLAIM
        if not path.is_file():
            write_whole(path, json.dumps(self._settings, indent=1, ensure_ascii=False) + "\n")

    def run(self, name: str, compute: Callable[[], Any]) -> Any:
        """The result of a step as JSON has it: from its file, or computed and written there.

        Args:
            name: Of the step and of its file.
            compute: Gives what JSON can hold.

        Raises:
            DataError: The file is damaged.
        """
        path = step_path(self.folder, name)
        if path.is_file():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                self.seconds[name] = float(kept["seconds"])
                return kept["result"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path} is damaged: remove it to do the step anew.") from error
        self.claim()
        start = time.monotonic()
        result = compute()
        self.seconds[name] = time.monotonic() - start
        kept = {"seconds": self.seconds[name], "result": result}
        write_whole(path, json.dumps(kept, ensure_ascii=False) + "\n")
        return json.loads(json.dumps(result))

    def _check(self, what: str) -> None:
        """See that the folder is new, or was begun with these settings; nothing is written."""
        path = self.folder / CLAIM
        if not path.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise ConfigError(f"{self.folder} holds something else: choose another --output.")
            return
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is no {what}: choose another --output.") from error
        now = self._settings
        changed = [name for name in {**now, **before} if before.get(name) != now.get(name)]
        if changed:
            raise ConfigError(
                f"{self.folder} was begun with other {', '.join(changed)}: choose another --output."
            )
