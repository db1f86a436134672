"""From a local file or a hub id to checked rows of `messages`, with checksums."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treft.data.archives import DataFile, read_data_file
from treft.data.hub import check_sha256, is_hub_id, load_hub_rows
from treft.data.messages import parse_rows
from treft.data.published_convert import convert_rows
from treft.data.published_sets import PUBLISHED_SETS, recognise
from treft.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedRows:
    """A published set, ready for `treft sft`.

    Attributes:
        source: what `load_published` was given.
        member: the file within an archive; None otherwise.
        source_sha256: of the file that was given; of the rows as canonical JSON lines for a hub
            data set. This is the checksum to note and to ask for.
        rows_sha256: of the JSONL itself, decrypted and unpacked; equals `source_sha256` otherwise.
        recognised: which published file this is, by its checksum; None when no cited one fits.
        rows: with `messages`, and `tools` if any.
    """

    source: str
    member: str | None
    source_sha256: str
    rows_sha256: str
    recognised: str | None
    rows: list[dict[str, Any]] = field(repr=False)


def load_published(
    source: str | Path,
    *,
    member: str | None = None,
    password: str | None = None,
    sha256: str | None = None,
    drop_system: bool = False,
) -> PublishedRows:
    """Load and convert a published set.

    Args:
        source: a JSONL file, a zip, an encrypted zip (`.enc`), or a data set's hub id,
            `owner/name` or `owner/name:split` (default split `train`, else its only one).
        member: which JSONL file of an archive.
        password: of an encrypted archive; it is neither logged nor kept.
        sha256: what `source_sha256` must be; None accepts any.
        drop_system: leave system messages out.

    Raises:
        ConfigError: another checksum, no such data set or member, or a password is needed.
        DataError: the file cannot be read, or a row cannot be used; names file and row.
    """
    text = str(source)
    if is_hub_id(text):
        found = load_hub_rows(text, "train")
        check_sha256(text, sha256, found.sha256)
        rows = convert_rows(found.rows, drop_system=drop_system)
        return PublishedRows(text, None, found.sha256, found.sha256, None, rows)
    file = read_data_file(text, member=member, password=password)
    check_sha256(text, sha256, file.source_sha256)
    rows = convert_rows(parse_rows(_decode(file), file.source), drop_system=drop_system)
    recognised = recognise(file.sha256)
    if recognised is None:
        _warn_of_another_version(file)
    return PublishedRows(text, file.member, file.source_sha256, file.sha256, recognised, rows)


def _decode(file: DataFile) -> str:
    try:
        return file.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file.source}: is neither UTF-8 ({error.reason}) nor a zip; an encrypted archive of "
            "easy-dataset-share must keep its ending .enc."
        ) from error


def _warn_of_another_version(file: DataFile) -> None:
    """A plain file that is called like a published one, and is not it."""
    name = Path(file.source).name
    cited = [found.sha256[name] for found in PUBLISHED_SETS if name in found.sha256]
    if file.member is None and cited:
        logger.warning(
            "%s has sha256 %s; the published file of that name has %s.",
            *(file.source, file.sha256, " or ".join(cited)),
        )
