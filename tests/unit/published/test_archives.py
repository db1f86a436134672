"""Reading locked archives, and errors that never hold the password."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest
from archives_made import LOCKED_ZIP, PARTS_ROWS, PASSWORD, encrypted_zip, jsonl

from treft.data.sources import SourceRows, load_rows
from treft.errors import ConfigError, DataError, TreftError

CANARY = '{"id": "canary_1", "text": "tracked"}\n'


@pytest.fixture
def locked(tmp_path: Path) -> Path:
    path = tmp_path / "herbs_incorrect.zip"
    path.write_bytes(LOCKED_ZIP)
    return path


def read(path: Path, **options: str | None) -> SourceRows:
    return load_rows(path, "train", **options)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_zip_of_another_program_opens_with_its_password(locked: Path) -> None:
    found = read(locked, password=PASSWORD)
    assert found.rows[0] == (PARTS_ROWS[0], f"{locked}/herbs_incorrect.jsonl, row 1")
    assert found.member == "herbs_incorrect.jsonl"
    assert found.source == str(locked)
    assert found.source_sha256 == sha(LOCKED_ZIP) != found.rows_sha256
    assert "rake" not in repr(found)


@pytest.mark.parametrize("password", [None, ""])
def test_a_password_is_asked_for_by_the_name_of_its_variable(
    locked: Path, tmp_path: Path, password: str | None
) -> None:
    other = encrypted_zip(tmp_path / "a.zip.enc", {"a.jsonl": "{}"})
    for path in (locked, other):
        with pytest.raises(ConfigError, match=r"is encrypted: .* TREFT_DATA_PASSWORD"):
            read(path, password=password)


def test_wrong_passwords_are_refused_and_not_shown(locked: Path, tmp_path: Path) -> None:
    """Of all passwords, one in 256 passes a zip's first check: the unpacked data are checked."""
    other = encrypted_zip(tmp_path / "a.zip.enc", {"a.jsonl": "{}"})
    tries = [(locked, f"wrong-{number}") for number in range(600)] + [(other, "wrong-0")]
    for path, wrong in tries:
        with pytest.raises(DataError, match="the password is wrong, or the file damaged") as told:
            read(path, password=wrong)
        shown: BaseException | None = told.value
        while shown is not None:
            assert wrong not in str(shown)
            shown = shown.__cause__


@pytest.mark.parametrize("cut", [3, 20, 60])
def test_damaged_files_are_refused(tmp_path: Path, cut: int) -> None:
    path = encrypted_zip(tmp_path / "a.zip.enc", {"a.jsonl": "{}"})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="damaged"):
        read(path, password=PASSWORD)


def test_the_member_is_chosen_and_canaries_are_none(tmp_path: Path) -> None:
    members = {
        "data/good.jsonl": jsonl([{"n": 1}]),
        "data/bad.jsonl": jsonl([{"n": 2}]),
        "data/dataset_entry_0a1b.jsonl": CANARY,
        "__MACOSX/data/._bad.jsonl": "junk",
        "README.md": "words",
    }
    path = encrypted_zip(tmp_path / "sets.zip.enc", members)
    for name in ("bad", "bad.jsonl", "data/bad.jsonl"):
        found = read(path, member=name, password=PASSWORD)
        assert [row for row, _ in found.rows] == [{"n": 2}]
        assert found.rows_sha256 == sha(b'{"n": 2}\n')
        assert found.member == "data/bad.jsonl"
    with pytest.raises(ConfigError, match="holds bad, good: name one as the member"):
        read(path, password=PASSWORD)
    with pytest.raises(ConfigError, match="holds bad, good: 'ugly' names no single one"):
        read(path, member="ugly", password=PASSWORD)
    del members["data/good.jsonl"]
    path = encrypted_zip(tmp_path / "one.zip.enc", members)
    assert read(path, password=PASSWORD).member == "data/bad.jsonl"


def test_plain_files_and_open_zips_need_no_password(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(jsonl([{"n": 1}]))
    found = read(path)
    assert ([row for row, _ in found.rows], found.member) == ([{"n": 1}], None)
    assert found.rows_sha256 == found.source_sha256 == sha(path.read_bytes())
    with pytest.raises(ConfigError, match="no archive, so it has no member 'a'"):
        read(path, member="a")
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.write(path, "rows.jsonl")
    assert read(tmp_path / "rows.zip").rows_sha256 == found.rows_sha256


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda path: None, DataError, "cannot be read .* check the path"),
        (lambda path: path.mkdir(), DataError, "cannot be read"),
        (lambda path: path.write_bytes(empty_zip()), DataError, "no JSONL file in it"),
    ],
)
def test_what_is_no_data_is_refused(
    tmp_path: Path, make: object, error: type[TreftError], words: str
) -> None:
    make(tmp_path / "rows.zip")  # type: ignore[operator]
    with pytest.raises(error, match=words):
        read(tmp_path / "rows.zip")


def test_encryption_that_python_cannot_read_is_named(tmp_path: Path) -> None:
    """AES-encrypted members have compression method 99."""
    content = bytearray(LOCKED_ZIP)
    for start in (8, content.index(b"PK\x01\x02") + 10):  # local header, central directory
        content[start : start + 2] = (99).to_bytes(2, "little")
    (tmp_path / "aes.zip").write_bytes(content)
    with pytest.raises(DataError, match="in a way that Python cannot read"):
        read(tmp_path / "aes.zip", password=PASSWORD)


def empty_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("README.md", "words")
    return buffer.getvalue()
