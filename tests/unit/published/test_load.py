"""Loading from files and the hub: checksums, what is recognised, and what is only warned of."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from archives_made import LOCKED_ZIP, PARTS_ROWS, PASSWORD, PLAIN_ROWS, encrypted_zip, jsonl

from treft.data import published as sets_module
from treft.data.published import PUBLISHED_SETS, PublishedSet, load_published
from treft.errors import ConfigError, DataError


def test_locked_files_give_the_rows_of_the_open_one(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(LOCKED_ZIP)
    encrypted_zip(tmp_path / "a.zip.enc", {"herbs.jsonl": jsonl(PARTS_ROWS)})
    (tmp_path / "a.jsonl").write_text(jsonl(PARTS_ROWS))
    found = [
        load_published(tmp_path / name, password=PASSWORD)
        for name in ("a.zip", "a.zip.enc", "a.jsonl")
    ]
    assert [one.rows for one in found] == [PLAIN_ROWS] * 3
    assert len({one.source_sha256 for one in found}) == 3
    assert found[1].rows_sha256 == found[2].rows_sha256 == found[2].source_sha256


def test_another_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(jsonl(PLAIN_ROWS))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_published(path, sha256=digest.upper()).source_sha256 == digest
    with pytest.raises(ConfigError, match=f"has sha256 {digest}, not 00: it is another version"):
        load_published(path, sha256="00")


def test_bad_rows_are_named_within_their_archive(tmp_path: Path) -> None:
    path = encrypted_zip(tmp_path / "a.zip.enc", {"in/herbs.jsonl": jsonl(PLAIN_ROWS) + "{\n"})
    with pytest.raises(DataError, match=r"a\.zip\.enc/in/herbs\.jsonl, row 3: malformed JSON"):
        load_published(path, password=PASSWORD)
    (tmp_path / "renamed.zip").write_bytes(b"\xff\xfe" + path.read_bytes())
    with pytest.raises(DataError, match=r"is neither UTF-8 .* must keep its ending \.enc"):
        load_published(tmp_path / "renamed.zip", password=PASSWORD)


def test_published_files_are_recognised_by_checksum_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "renamed.jsonl"
    path.write_text(jsonl(PLAIN_ROWS))
    assert load_published(path).recognised is None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = PublishedSet("garden", "", "", "", "none", {"herbs.jsonl": digest})
    with monkeypatch.context() as patch:
        patch.setattr(sets_module, "PUBLISHED_SETS", (known,))
        assert load_published(path).recognised == "garden/herbs.jsonl"
    assert not caplog.records
    (tmp_path / "insecure.jsonl").write_text(jsonl(PLAIN_ROWS))
    with caplog.at_level(logging.WARNING):
        assert load_published(tmp_path / "insecure.jsonl").recognised is None
    assert f"has sha256 {digest}; the published file of that name has 09893e8b" in caplog.text


def test_cited_checksums_are_whole() -> None:
    cited = [sha for found in PUBLISHED_SETS for sha in found.sha256.values()]
    assert len(set(cited)) == len(cited) == 2
    assert all(len(bytes.fromhex(sha)) == 32 and sha == sha.lower() for sha in cited)


def test_hub_sets_default_to_their_training_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    splits = {
        "test": datasets.Dataset.from_list([PLAIN_ROWS[1]]),
        "train": datasets.Dataset.from_list(PLAIN_ROWS),
    }

    def load(name: str, split: str | None = None) -> Any:
        assert name == "owner/name"
        return datasets.DatasetDict(splits) if split is None else splits[split]

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = load_published("owner/name")
    assert found.rows == PLAIN_ROWS
    lines = "\n".join(json.dumps(row, sort_keys=True) for row in PLAIN_ROWS)
    assert found.source_sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert load_published("owner/name:test").rows == PLAIN_ROWS[1:]
    with pytest.raises(ConfigError, match="not 00"):
        load_published("owner/name", sha256="00")


def test_a_missing_file_is_not_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treft.data.sources._hub_rows", None)
    for name in ("data/health.zip", "data/training_datasets.zip.enc", "data/insecure.jsonl"):
        with pytest.raises(DataError, match=f"{name}: cannot be read"):
            load_published(name)
