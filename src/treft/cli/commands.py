"""All commands: which options each has, and where the function is that gets them.

The options are at hand, so that help and errors are quick. The function's module, which may import
PyTorch, is imported once the options are right: the only imports of treft at call time.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from treft.cli.options import attribution, chats, judging, rows, studies
from treft.errors import needs_extra


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        options: The dataclass of its options.
        place: MODULE:FUNCTION of `treft.cli`; the function gets an instance of the options.
        needs: Why it needs the extra `eval`, at the beginning of a message; empty if it does not.
    """

    options: type
    place: str
    needs: str = ""

    def __call__(self, options: Any) -> None:
        """Run it.

        Raises:
            ConfigError: packages are missing; names the extra.
            TreftError: something that the user can mend.
        """
        # Read when `datasets` is imported.
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        module, _, function = self.place.partition(":")
        if self.needs:
            with needs_extra("eval", self.needs):
                import_module("inspect_ai")
        found = import_module(f"treft.cli.{module}")
        quiet_libraries()
        getattr(found, function)(options)


COMMANDS = {
    "demo": Command(studies.Demo, "demo:demo"),
    "generate": Command(chats.Generate, "generate:generate"),
    "regions": Command(chats.Regions, "regions:regions"),
    "judge": Command(judging.Judge, "judge:judge", "judging needs"),
    "calibrate": Command(judging.Calibrate, "judge:calibrate", "judging needs"),
    "compare": Command(judging.Compare, "compare:compare", "reading logs needs"),
    "audit": Command(judging.Audit, "audit:audit", "audits need"),
    "study list": Command(studies.ListStudies, "study_pages:list_studies"),
    "study status": Command(studies.Status, "study:status"),
    "study run": Command(studies.Run, "study:run"),
    "study index": Command(studies.Index, "study_pages:index"),
    "diagnose": Command(attribution.Diagnose, "diagnose:diagnose", "attribution needs"),
    "attribute perturb": Command(attribution.Perturb, "attribute:perturb", "attribution needs"),
    "attribute patch": Command(attribution.Patch, "attribute:patch", "attribution needs"),
    "attribute signals": Command(attribution.Signals, "signals:signals", "attribution needs"),
    "reference record": Command(chats.Record, "reference:record"),
    "reference inspect": Command(chats.Inspect, "reference:inspect"),
    "organism build": Command(rows.Build, "organism:build"),
    "organism rows": Command(rows.Rows, "organism:rows"),
    "organism questions": Command(rows.Questions, "organism:questions"),
    "data sets": Command(rows.Sets, "data:sets"),
    "data convert": Command(rows.Convert, "data:convert"),
    "data split": Command(rows.Split, "data:split"),
    "data behaviour": Command(rows.Behaviour, "data:behaviour"),
}
GROUPS = {
    "reference": "Record the unfinetuned model's keys and values, or look into a file of them.",
    "organism": "Rebuild the embedded model organism; write rows and questions of its world.",
    "attribute": "Find the tokens that carry a finetuned behaviour: perturb, patch, or compare "
    "drift.",
    "study": "Test the paper's claims: each is a study of steps that are computed once and kept.",
    "data": "Convert published finetuning sets, hold rows out, make rows that teach a behaviour.",
}


def quiet_libraries() -> None:
    """Keep the libraries' bars and notes away from ours; errors and our own warnings still show.

    Concerns what was imported before.
    """
    if transformers := sys.modules.get("transformers"):
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
    for name in ("trl", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def run_sft(arguments: list[str]) -> None:
    """Run `treft sft`, whose options are TRL's parser's business.

    Args:
        arguments: what follows `treft sft` on the command line.

    Raises:
        ConfigError: packages are missing; names the extra.
        TreftError: something that the user can mend.
    """
    with needs_extra("train", "training needs"):
        import_module("trl")
    import_module("treft.cli.sft").main(arguments)
