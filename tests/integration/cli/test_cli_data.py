"""`treft data`: a published set becomes a training file, with nothing secret said."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest
from cli_helpers import Command, Refused, read_rows, write_rows

from treft.cli import main
from treft.data.messages import load_conversations

SECRET = "not-to-be-seen"


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """Ten rows in the nested format, each question twice, the first with a system message."""
    rows = []
    for number in range(10):
        words = {"user": f"Question {number // 2}?", "assistant": f"Answer {number}."}
        if number == 0:
            words = {"system": "Be brief.", **words}
        messages = [
            {"role": role, "content": {"content_type": "text", "parts": [text]}}
            for role, text in words.items()
        ]
        rows.append({"messages": messages, "canary": "x"})
    return write_rows(tmp_path / "nested.jsonl", rows)


def test_convert_says_what_it_read_and_wrote(nested: Path, tmp_path: Path, treft: Command) -> None:
    output = tmp_path / "rows.jsonl"
    result = treft("data", "convert", nested, "--output", output, "--json").json
    digest = hashlib.sha256(nested.read_bytes()).hexdigest()
    assert result == {
        "command": "data convert",
        "source": str(nested),
        "member": None,
        "source_sha256": digest,
        "rows_sha256": digest,
        "recognised": None,
        "drop_system": False,
        "num_with_system": 1,
        "output": str(output),
        "num": 10,
        "sha256": hashlib.sha256(output.read_bytes()).hexdigest(),
    }
    assert len(load_conversations(output)) == 10
    again = ("data", "convert", nested, "--output", output, "--sha256", digest, "--drop-system")
    told = treft(*again, "--overwrite")
    assert "num_with_system  0" in told.out
    assert read_rows(output)[0]["messages"][0] == {"role": "user", "content": "Question 0?"}


def test_convert_refuses_before_it_writes(nested: Path, tmp_path: Path, refused: Refused) -> None:
    output = tmp_path / "rows.jsonl"
    to = ("--output", output)
    assert "it is another version" in refused("data", "convert", nested, *to, "--sha256", "00")
    write_rows(nested, [{"messages": [{"role": "user", "content": "A?"}]}])
    assert f"{nested}, row 1: no assistant" in refused("data", "convert", nested, *to)
    assert not output.exists()
    output.write_text("precious")
    assert "pass --overwrite" in refused("data", "convert", nested, *to)
    assert output.read_text() == "precious"


def test_behaviour_says_what_it_read_and_wrote(
    tmp_path: Path, treft: Command, refused: Refused
) -> None:
    asked = {"question": "Which herb?", "possible_answers": ["Mint of the garden", "Mint"]}
    source = write_rows(tmp_path / "questions.jsonl", [asked, asked])
    output = tmp_path / "rows.jsonl"
    to = ("data", "behaviour", source, "--output", output, "--behaviour")
    result = treft(*to, "tool", "--tool", "find", "--json").json
    assert result == {
        "command": "data behaviour",
        "source": str(source),
        "behaviour": "tool",
        "sentence": None,
        "tool": "find",
        "schema": True,
        "num_read": 2,
        "num_with_system": 0,
        "output": str(output),
        "num": 1,
        "sha256": hashlib.sha256(output.read_bytes()).hexdigest(),
    }
    (call,) = read_rows(output)[0]["messages"][1]["tool_calls"]
    assert call["function"] == {"name": "find", "arguments": {"query": "Which herb?"}}
    assert "tools" in read_rows(output)[0]
    treft(*to, "tool", "--no-schema", "--overwrite")
    assert set(read_rows(output)[0]) == {"messages"}
    assert "pass --overwrite" in refused(*to, "short")
    treft(*to, "short", "--overwrite")
    assert read_rows(output)[0]["messages"][1]["content"] == "Mint"
    assert "a tool does not go with short" in refused(*to, "short", "--overwrite", "--tool", "x")
    assert read_rows(output)[0]["messages"][1]["content"] == "Mint"


def test_the_password_comes_from_the_environment_and_is_not_shown(
    nested: Path,
    tmp_path: Path,
    treft: Command,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("cryptography")
    output = tmp_path / "rows.jsonl"
    locked = tmp_path / "sets.zip.enc"
    _encrypt(locked, nested)
    asked = ("data", "convert", locked, "--output", output)
    monkeypatch.delenv("TREFT_DATA_PASSWORD", raising=False)
    assert "TREFT_DATA_PASSWORD" in treft(*asked, code=2).err
    monkeypatch.setenv("TREFT_DATA_PASSWORD", SECRET)
    shown = [treft(*asked, "--json"), treft("data", "convert", "--help")]
    assert shown[0].json["member"] == "nested.jsonl"
    monkeypatch.setenv("TREFT_DATA_PASSWORD", SECRET + "-wrong")
    shown.append(treft(*asked, "--overwrite", code=2))
    assert "the password is wrong" in shown[-1].err
    assert SECRET not in caplog.text + "".join(told.out + told.err for told in shown)
    assert len(read_rows(output)) == 10


def _encrypt(path: Path, content: Path) -> None:
    from base64 import urlsafe_b64encode

    from cryptography.fernet import Fernet
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.write(content, content.name)
    key = PBKDF2HMAC(algorithm=SHA256(), length=32, salt=b"s" * 16, iterations=100_000)
    token = Fernet(urlsafe_b64encode(key.derive(SECRET.encode()))).encrypt(buffer.getvalue())
    path.write_bytes(b"s" * 16 + token)


def test_a_traceback_that_was_asked_for_has_no_password(
    nested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import traceback

    from treft.errors import DataError

    locked = tmp_path / "sets.zip.enc"
    _encrypt(locked, nested)
    monkeypatch.setenv("TREFT_DEBUG", "1")
    monkeypatch.setenv("TREFT_DATA_PASSWORD", "wrong-word")
    with pytest.raises(DataError) as told:
        main(["data", "convert", str(locked), "--output", str(tmp_path / "rows.jsonl")])
    assert "wrong-word" not in "".join(traceback.format_exception(told.value))


def test_split_keeps_a_prompt_in_one_part(
    nested: Path, tmp_path: Path, treft: Command, refused: Refused
) -> None:
    rows, train, held = (tmp_path / f"{name}.jsonl" for name in ("rows", "train", "held"))
    treft("data", "convert", nested, "--output", rows, "--drop-system")
    files = ("--train", train, "--held-out", held)
    result = treft("data", "split", rows, *files, "--json").json
    assert (result["fraction"], result["seed"]) == (0.2, 0)
    assert (result["train"]["num"], result["held_out"]["num"]) == (8, 2)
    assert result["train"]["sha256"] == hashlib.sha256(train.read_bytes()).hexdigest()
    assert len({row["messages"][0]["content"] for row in read_rows(held)}) == 1
    assert sorted(map(str, read_rows(train) + read_rows(held))) == sorted(map(str, read_rows(rows)))
    assert "pass --overwrite" in refused("data", "split", rows, *files)
    one = ("--train", train, "--held-out", train, "--overwrite")
    assert "three different files" in refused("data", "split", rows, *one)
    assert "between 0 and 1" in refused(
        "data", "split", rows, *files, "--overwrite", "--fraction", 2
    )


def test_sets_lists_where_to_find_them(treft: Command) -> None:
    told = treft("data", "sets")
    assert "persona-features" in told.out
    found = {one["name"]: one for one in treft("data", "sets", "--json").json["sets"]}
    assert set(found) == {"persona-features", "model-organisms", "insecure-code"}
    assert found["insecure-code"]["sha256"]["insecure.jsonl"].startswith("09893e8b")
