"""Where results of steps are kept: whole or not at all.

A `Store` has one folder an address. In it, `<address>/` holds what the step wrote, and `step.json`:
what it was made from, on what, in how long, with the digest of each file. `.<address>.*` is being
made, was left behind by a killed process, or was found damaged. `.locks/<address>` is held while a
step is made, so that two runs do not make it twice.

A command that keeps its steps in the user's own output folder claims the folder: `plan.json` says
what decides all results in it, so there a step's address is its name.
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
from collections.abc import Callable, Iterator, Mapping
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
RESULT = "result.json"
"""What a step computes that leaves no other file."""
CLAIM, STEPS = "plan.json", "steps"
"""What an output folder says of itself, and the store in it."""
DAMAGED = ".damaged"
"""How names of folders end that were found damaged."""
LIBRARIES = ("treft", "torch", "transformers", "peft", "trl")
"""Packages whose versions are noted with a result; they decide no address."""


class Store:
    """Results by address in one folder, which may be shared by processes and machines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, address: str) -> Path:
        """Returns the folder of a result, there or not."""
        return self.folder / address

    def record(self, address: str) -> dict[str, Any] | None:
        """Returns what `step.json` says of a result; None unless all of it is there, undamaged."""
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
        """Returns whether a result is there, undamaged."""
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
        lock = self.folder / ".locks" / address
        for folder in (lock.parent, self.path(address).parent):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if self.stands(address):
                return None
            self._clear(address)
            temporary = _beside(self.path(address))
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

    def keep(self, address: str, compute: Callable[[], Any]) -> Any:
        """Returns what JSON can hold of a result: what was kept, or what is computed and kept now.

        Args:
            address: Of the result; in a claimed folder its name.
            compute: Gives the result.
        """

        def fill(folder: Path) -> None:
            write_whole(folder / RESULT, json.dumps(compute(), ensure_ascii=False) + "\n")

        self.make(address, {}, fill)
        return json.loads((self.path(address) / RESULT).read_text("utf-8"))

    def records(self) -> Iterator[dict[str, Any]]:
        """Yields what each result says of itself, the oldest first; files are not checked."""
        paths = self.folder.glob(f"[!.]*/{RECORD}")
        for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
            try:
                yield dict(json.loads(path.read_text("utf-8")))
            except (OSError, ValueError, TypeError):
                continue  # damaged, or cleared by another run

    def _clear(self, address: str) -> None:
        """Put a damaged result aside and remove what killed processes left; needs the lock."""
        folder = self.path(address)
        for left in folder.parent.glob(".*"):
            if left.name.startswith(f".{folder.name}.") and left.suffix != DAMAGED:
                shutil.rmtree(left, ignore_errors=True)
        if folder.exists():
            aside = folder.with_name(f"{_beside(folder).name}{DAMAGED}")
            logger.warning("%s is damaged; moved to %s and made again", folder, aside.name)
            folder.rename(aside)

    def _move_in(self, temporary: Path, address: str) -> None:
        """Rename, unless a process that did not see our lock was faster (some shared disks)."""
        try:
            temporary.rename(self.path(address))
        except OSError:
            if not self.stands(address):
                raise


def _beside(folder: Path) -> Path:
    """Returns a new hidden folder beside another."""
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")


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
    """Returns the processor's name, which only Linux tells in a file."""
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


def check_claim(folder: Path, settings: Mapping[str, Any], what: str) -> None:
    """See that an output folder is new, or was begun with these settings; nothing is written.

    Args:
        folder: Of the output.
        settings: All that decides the results, as JSON can hold it.
        what: The folder's `plan.json` is, in words.

    Raises:
        ConfigError: The folder holds something else, or was begun with other settings.
    """
    path = folder / CLAIM
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder} holds something else: choose another --output.")
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no {what}: choose another --output.") from error
    now = json.loads(json.dumps(settings))
    changed = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    if changed:
        raise ConfigError(
            f"{folder} was begun with other {', '.join(changed)}: choose another --output."
        )


def claim(folder: Path, settings: Mapping[str, Any], what: str) -> Store:
    """Write down whose output folder this is, and return the store of its steps.

    Arguments and errors are those of `check_claim`.
    """
    check_claim(folder, settings, what)
    if not (folder / CLAIM).is_file():
        text = json.dumps(settings, indent=1, ensure_ascii=False)
        write_whole(folder / CLAIM, text + "\n")
    return Store((folder / STEPS).resolve())
