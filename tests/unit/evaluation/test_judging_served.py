"""Judges that a server runs: vLLM's and others of OpenAI's protocol, by Inspect's providers.

The server here answers as a vLLM server does, by rule, and keeps what it was asked. Inspect keeps
the address of a vLLM server by the model's name, so each test has its own.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import pytest

from treft.judging.judge import Judge, JudgeOptions
from treft.judging.prompts import alignment_prompt
from treft.judging.reading import Reading, read_score

PROMPT = alignment_prompt("How are you?", "Fine.")
KEY = "sk-served-0123456789"
NUMBERS = {"90": 0.5, "80": 0.25, "The": 0.25}


class Server(ThreadingHTTPServer):
    """Answers each request with `replies`, the last one again and again; an int is a status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[dict[str, float] | int] = [NUMBERS]
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    """OpenAI's protocol as vLLM speaks it."""

    server: Server

    def do_GET(self) -> None:
        assert self.path == "/v1/models"
        self._send(200, {"object": "list", "data": [{"id": "judge", "max_model_len": 4096}]})

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.keys.add(self.headers["Authorization"])
        replies = self.server.replies
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if isinstance(reply, int):
            self._send(reply, {"error": {"message": f"status {reply}", "type": "server_error"}})
        else:
            self._send(200, completion(reply))

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Nothing to the terminal."""


def completion(top: dict[str, float]) -> dict[str, Any]:
    """A chat completion whose first token has these probabilities."""
    tokens = [
        {"token": token, "logprob": math.log(share), "bytes": list(token.encode())}
        for token, share in top.items()
    ]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": tokens[0]["token"]},
                "logprobs": {"content": [{**tokens[0], "top_logprobs": tokens}]},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
    }


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    with Server() as server:
        for name in ("VLLM", "LOCAL"):
            monkeypatch.setenv(f"{name}_BASE_URL", server.url)
            monkeypatch.setenv(f"{name}_API_KEY", KEY)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(judge: Judge) -> Reading:
    return anyio.run(judge.ask, PROMPT, read_score)


@pytest.mark.parametrize("name", ["vllm/reader", "openai-api/local/reader"])
def test_a_served_judge_is_read_by_its_log_probabilities(name: str, served: Server) -> None:
    for _ in range(2):
        reading = ask(Judge(name))
        assert (reading.outcome, reading.method, reading.attempts) == ("scored", "logprobs", 1)
        assert reading.value == pytest.approx((0.5 * 90 + 0.25 * 80) / 0.75)
        assert reading.numeric_mass == pytest.approx(0.75)
    (asked,) = served.asked  # the second judgement is the cache's
    assert asked["model"] == "reader"
    assert [message["content"] for message in asked["messages"]] == [PROMPT]
    assert (asked["temperature"], asked["logprobs"], asked["top_logprobs"]) == (0, True, 20)
    assert served.keys == {f"Bearer {KEY}"}


def test_words_of_a_served_judge_are_no_score(served: Server) -> None:
    served.replies = [{"The": 0.9, "90": 0.1}]
    reading = ask(Judge("vllm/talker"))
    assert (reading.outcome, reading.value) == ("missing", None)
    assert reading.numeric_mass == pytest.approx(0.1)


def test_what_a_server_refuses_is_missing_and_says_so_without_the_key(served: Server) -> None:
    served.replies = [400]
    reading = ask(Judge("vllm/refuser", JudgeOptions(attempts=2)))
    assert (reading.outcome, reading.attempts) == ("missing", 2)
    assert "status 400" in reading.reason
    assert KEY not in reading.reason
    assert len(served.asked) == 2


def test_a_judge_whose_key_is_refused_is_asked_nothing_more(served: Server) -> None:
    served.replies = [401, NUMBERS]
    judge = Judge("vllm/locked")
    for prompt in (PROMPT, PROMPT, alignment_prompt("How are you?", "Well.")):
        reading = anyio.run(judge.ask, prompt, read_score)
        assert (reading.outcome, reading.attempts) == ("missing", 1)
        assert "status 401" in reading.reason
    assert len(served.asked) == 1
    reading = ask(Judge("vllm/locked"))  # another run, with another key
    assert reading.outcome == "scored"


def test_a_busy_server_is_asked_again_by_the_provider(served: Server) -> None:
    served.replies = [503, NUMBERS]
    reading = ask(Judge("openai-api/local/busy"))
    assert (reading.outcome, reading.attempts) == ("scored", 1)
    assert len(served.asked) == 2
