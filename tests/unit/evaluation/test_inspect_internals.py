"""What treft takes from Inspect without a public name is there and does what is assumed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from inspect_ai import Task, eval
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver

from treft.answers.inspect_internals import errors_in_one_line, running_config
from treft.errors import ConfigError, DataError
from treft.evaluation.tasks import em_general

SOURCES = Path(__file__).parents[3] / "src" / "treft"


@pytest.fixture(autouse=True)
def _inspect_writes_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "INSPECT_CACHE_DIR", "INSPECT_LOG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def test_no_other_module_reaches_behind_inspects_public_names() -> None:
    reaching = [
        path.name
        for path in SOURCES.rglob("*.py")
        if "inspect_ai._" in path.read_text() or "inspect_ai.model._" in path.read_text()
    ]
    assert reaching == ["inspect_internals.py"]


def test_the_running_configuration_has_a_seed_given_beside_a_loaded_model() -> None:
    seen: list[int | None] = []

    @solver
    def look() -> Solver:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            assert get_model().config.seed is None, "there would be a public place"
            seen.append(running_config().seed)
            return state

        return solve

    output = ModelOutput.from_content("mock", "fine")
    output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    task = Task(dataset=MemoryDataset([Sample(id="a", input="Q?")]), solver=look())
    model = get_model("mockllm/model", custom_outputs=[output])
    (log,) = eval(task, model=model, seed=17, display="none")
    assert log.status == "success", log.error
    assert seen == [17]


@pytest.mark.parametrize("kind", [ConfigError, DataError])
def test_errors_stay_what_they_were(kind: type[ConfigError] | type[DataError]) -> None:
    @errors_in_one_line
    def fail() -> None:
        raise kind("install 'treft[eval]'")

    with pytest.raises(kind, match=r"treft\[eval\]") as caught:
        fail()
    assert isinstance(caught.value, PrerequisiteError)
    assert type(caught.value).__name__ == kind.__name__


def test_tasks_keep_their_own_kind_of_error() -> None:
    with pytest.raises(ConfigError, match="there is no question set nowhere"):
        em_general(questions="nowhere")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-T", "questions=nowhere[1]"), "ERROR: there is no question set nowhere[1]:"),
        (("-T", "judge=nobody/x"), "ERROR: the judge nobody/x cannot be loaded:"),
        (("--model", "treft/organism", "-M", "patch=suffix"), "ERROR: model arguments: patch"),
        (
            ("-T", "judge=mockllm/model", "-T", "judge_limit=3", "--debug-errors"),
            "ERROR: 140 judge calls are more than 3: allow them with -T judge_limit=140",
        ),
        (("--model", "treft/organism", "--frequency-penalty", "1"), "no frequency_penalty"),
    ],
)
def test_inspect_shows_them_in_a_line(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "inspect_ai", "eval", "treft/em_general"]
    found = subprocess.run(
        [*command, "--model", "mockllm/model", "--display", "plain", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    written = " ".join((found.stdout + found.stderr).split())
    assert said in written
    assert "Traceback" not in written
    assert found.returncode != 0
