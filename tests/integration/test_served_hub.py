"""Question sets and training rows from a hub: the real client, and a server that answers as it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

QUESTIONS = [{"id": f"q{i}", "question": f"What of {i}?"} for i in range(3)]
ROWS = [
    {"messages": [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": f"{i}."}]}
    for i in range(2)
]
COMMIT = "a" * 40


def lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode()


FILES = {
    "open-questions": {"test.jsonl": lines(QUESTIONS), "README.md": b"# Open questions\n"},
    "advice": {"train.jsonl": lines(ROWS), "README.md": b"# Advice\n"},
}


class Handler(BaseHTTPRequestHandler):
    """Data sets `team/NAME` of one commit, by the hub's API."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        for name, files in FILES.items():
            if path.startswith(f"/api/datasets/team/{name}/tree/"):
                return self._json([self._listed(file, data) for file, data in files.items()])
            if path.startswith(f"/api/datasets/team/{name}"):
                siblings = [{"rfilename": file} for file in files]
                return self._json({"id": f"team/{name}", "sha": COMMIT, "siblings": siblings})
            if path.startswith(f"/datasets/team/{name}/resolve/"):
                file = path.split("/", 6)[-1]
                if file in files:
                    return self._send(200, files[file], {"ETag": _digest(files[file])})
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    @staticmethod
    def _listed(file: str, data: bytes) -> dict[str, object]:
        return {"type": "file", "path": file, "size": len(data), "oid": _digest(data)}

    def _json(self, body: object) -> None:
        self._send(200, json.dumps(body).encode(), {})

    def _send(self, status: int, body: bytes, head: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**head, "X-Repo-Commit": COMMIT}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing to the terminal."""


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


SCRIPT = """
import json
from treft.errors import ConfigError
from treft.answers.questions import load_questions
from treft.data.published import load_published

found = load_questions("team/open-questions")
rows = load_published("team/advice")
told = []
for call in (
    lambda: load_questions("team/none"),
    lambda: load_questions("team/open-questions", "0" + found.sha256[1:]),
    lambda: load_questions("team/open-questions:train"),
):
    try:
        call()
    except ConfigError as error:
        told.append(str(error))
asked = [question.messages[0]["content"] for question in found.questions]
print(json.dumps([[q.id for q in found.questions], asked, found.sha256, rows.rows, told]))
"""


def test_sets_and_rows_come_from_a_hub_by_their_id(hub: str, tmp_path: Path) -> None:
    """In a process of its own: the client reads the hub's address when it is imported."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_OFFLINE")}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    ids, asked, sha256, rows, told = json.loads(done.stdout.splitlines()[-1])
    assert ids == ["q0", "q1", "q2"]
    assert asked == [question["question"] for question in QUESTIONS]
    assert sha256 == hashlib.sha256(lines(QUESTIONS).rstrip(b"\n")).hexdigest()
    assert rows == ROWS
    missing, wrong, split = told
    assert "team/none is neither a file nor a data set that can be loaded" in missing
    assert "it is another version, or damaged" in wrong
    assert "train" in split
