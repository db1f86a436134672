"""Where rows come from: a JSONL file, an archive with one in it, or a data set on the hub.

Three forms of file: the file itself; a zip whose members may have a password (PKWARE's traditional
encryption, which Python's zipfile reads); and `.enc`, a zip as easy-dataset-share encrypts it: 16
bytes of salt, then a Fernet token whose key is PBKDF2-HMAC-SHA256 of the password, 100,000 rounds.
Everything is unpacked in memory: the archives are locked so that crawlers do not find their text,
and no unlocked copy is left behind. Passwords are in no message.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from treft.data.messages import parse_rows
from treft.errors import ConfigError, DataError, first_line, needs_extra

PASSWORD_VARIABLE = "TREFT_DATA_PASSWORD"
"""Environment variable that the command takes a password from."""

SALT_BYTES = 16
ROUNDS = 100_000
NOT_DATA = ("dataset_entry_*", "._*")
"""Members that are no data: easy-dataset-share's canaries, macOS's twins of files."""
FILE_SUFFIXES = (".jsonl", ".json", ".zip", ".enc")
"""What ends so is the name of a file, there or not."""


@dataclass(frozen=True)
class SourceRows:
    """Rows, and where they come from.

    Attributes:
        source: what `load_rows` was given.
        member: the file within an archive; None otherwise.
        source_sha256: of the file that was given, as it was downloaded; of the rows as canonical
            JSON lines for a hub data set. This is the checksum to note and to ask for.
        rows_sha256: of the JSONL itself, decrypted and unpacked; equals `source_sha256` otherwise.
        rows: each with the words that name it in errors.
    """

    source: str
    member: str | None
    source_sha256: str
    rows_sha256: str
    rows: list[Any] = field(repr=False)


def load_rows(
    source: str | Path,
    split: str,
    *,
    member: str | None = None,
    password: str | None = None,
    sha256: str | None = None,
) -> SourceRows:
    """Load the rows of a file, of the one JSONL file that is wanted of an archive, or of the hub.

    Args:
        source: a JSONL file, a zip, an encrypted zip named `.enc`, or a data set's hub id,
            `owner/name` or `owner/name:split`.
        split: of a data set whose id names none; a set's only split goes for it.
        member: which JSONL file of an archive, with or without folder and `.jsonl`; not needed
            where there is one.
        password: of an encrypted archive; it is neither logged nor kept.
        sha256: what `source_sha256` must be; None accepts any.

    Raises:
        ConfigError: another checksum, no such data set or split, a password or member that is
            needed, unknown or of no use, or a package is missing.
        DataError: the file cannot be read, is damaged, or the password is wrong.
    """
    text = str(source)
    if is_hub_id(text):
        rows = _hub_rows(text, split)
        lines = [json.dumps(row, sort_keys=True, ensure_ascii=False) for row, _ in rows]
        digest = _checked("\n".join(lines).encode(), text, sha256)
        return SourceRows(text, None, digest, digest, rows)
    path = Path(source)
    try:
        given = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path.") from error
    digest = _checked(given, text, sha256)
    content, name = _decrypt(given, password, path) if path.suffix == ".enc" else given, text
    if zipfile.is_zipfile(io.BytesIO(content)):
        member, content = _unpack(content, member, password, path)
        name = f"{path}/{member}"
    elif member is not None:
        raise ConfigError(f"{path} is no archive, so it has no member {member!r}: drop it.")
    try:
        rows = parse_rows(content.decode("utf-8-sig"), name)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: is neither UTF-8 ({error.reason}) nor a zip; save it as UTF-8. An encrypted "
            "archive of easy-dataset-share must keep its ending .enc."
        ) from error
    return SourceRows(text, member, digest, hashlib.sha256(content).hexdigest(), rows)


def _decrypt(given: bytes, password: str | None, path: Path) -> bytes:
    """Returns what easy-dataset-share encrypted."""
    with needs_extra("data", f"{path} is encrypted, and reading it needs"):
        from cryptography.fernet import Fernet, InvalidToken
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
    secret = _needed(password, path)
    derivation = PBKDF2HMAC(
        algorithm=SHA256(), length=32, salt=given[:SALT_BYTES], iterations=ROUNDS
    )
    try:
        key = base64.urlsafe_b64encode(derivation.derive(secret.encode()))
        return Fernet(key).decrypt(given[SALT_BYTES:])
    except (InvalidToken, ValueError) as error:
        raise _locked(path) from error


def _unpack(
    content: bytes, member: str | None, password: str | None, path: Path
) -> tuple[str, bytes]:
    """Name and bytes of one JSONL member."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            name = _choose(_data_members(archive), member, path)
            locked = archive.getinfo(name).flag_bits & 1
            secret = _needed(password, path).encode() if locked else None
            return name, archive.read(name, pwd=secret)
    except NotImplementedError as error:
        raise DataError(
            f"{path}: packed or encrypted in a way that Python cannot read ({error}); unpack it "
            "with another program and give the JSONL file."
        ) from error
    # A wrong password shows at once, as data that do not unpack, or as a wrong checksum.
    except (RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise _locked(path) from error


def _data_members(archive: zipfile.ZipFile) -> list[str]:
    return [
        name
        for name in archive.namelist()
        if name.endswith(".jsonl")
        and not any(fnmatch(PurePosixPath(name).name, pattern) for pattern in NOT_DATA)
    ]


def _choose(names: list[str], member: str | None, path: Path) -> str:
    """The member that is meant.

    Raises:
        ConfigError: it is not there, or there are several.
        DataError: the archive has no JSONL file at all.
    """
    if not names:
        raise DataError(f"{path}: no JSONL file in it; is it the right archive?")
    if member is None and len(names) == 1:
        return names[0]
    wanted = [
        name
        for name in names
        if member in (name, PurePosixPath(name).name, PurePosixPath(name).stem)
    ]
    if len(wanted) != 1:
        listed = ", ".join(sorted(PurePosixPath(name).stem for name in names))
        asked = "name one as the member" if member is None else f"{member!r} names no single one"
        raise ConfigError(f"{path} holds {listed}: {asked}.")
    return wanted[0]


def _needed(password: str | None, path: Path) -> str:
    if not password:
        raise ConfigError(
            f"{path} is encrypted: give its password, which its repository's README states, in "
            f"the environment variable {PASSWORD_VARIABLE}."
        )
    return password


def _locked(path: Path) -> DataError:
    return DataError(f"{path}: does not open: the password is wrong, or the file damaged.")


def is_hub_id(source: str) -> bool:
    """Returns whether this can be nothing but `owner/name`, maybe with `:split`."""
    return (
        source.count("/") == 1 and not source.endswith(FILE_SUFFIXES) and not Path(source).exists()
    )


def _hub_rows(source: str, split: str) -> list[tuple[dict[str, Any], str]]:
    """Returns the rows of a data set."""
    name, _, named = source.partition(":")
    with needs_extra("train", f"{source} is no file, and hub data sets need"):
        from datasets import DatasetDict, load_dataset
    try:
        found = load_dataset(name, split=named or None)
    except Exception as error:  # datasets raises a different one for each way to fail
        raise ConfigError(
            f"{source} is neither a file nor a data set that can be loaded from the hub "
            f"({first_line(error)}). Without a network, save it as a JSONL file and give its path."
        ) from error
    if isinstance(found, DatasetDict):
        splits = list(found)
        if split not in splits and len(splits) != 1:
            raise ConfigError(f"{name} has the splits {', '.join(splits)}: give {name}:SPLIT.")
        found = found[split if split in splits else splits[0]]
    return [(dict(row), f"{source}, row {number}") for number, row in enumerate(found, start=1)]


def check_sha256(source: str, wanted: str | None, found: str) -> None:
    """Hold a file or data set to a checksum; None accepts any.

    Raises:
        ConfigError: it has another one.
    """
    if wanted is not None and wanted.lower() != found:
        raise ConfigError(
            f"{source} has sha256 {found}, not {wanted}: it is another version, or damaged."
        )


def _checked(content: bytes, source: str, wanted: str | None) -> str:
    digest = hashlib.sha256(content).hexdigest()
    check_sha256(source, wanted, digest)
    return digest
