"""Steps of long work, each kept in a file of its own: a killed run goes on from there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from treft.attribution.claim import check_claim, claim_folder
from treft.errors import DataError
from treft.files import write_whole

CLAIM, WHAT = "plan.json", "diagnosis"


class Steps:
    """Results of steps in a folder.

    Args:
        folder: new, or begun with the same `claim`.
        claim: all that decides the results, as JSON has it.

    Raises:
        ConfigError: the folder holds something else, or was begun with another claim.
    """

    def __init__(self, folder: Path, claim: Mapping[str, Any]) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self._claim = dict(json.loads(json.dumps(claim)))
        check_claim(folder / CLAIM, self._claim, WHAT)

    def claim(self) -> None:
        """Write down whose folder this is, before the first result."""
        claim_folder(self.folder / CLAIM, self._claim, WHAT)

    def run(self, name: str, compute: Callable[[], Any]) -> Any:
        """The result of a step as JSON has it: from its file, or computed and written there.

        Args:
            name: of the step and of its file.
            compute: gives what JSON can hold.

        Raises:
            DataError: the file is damaged.
        """
        path = self.folder / "steps" / f"{name}.json"
        if path.is_file():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                self.seconds[name] = float(kept["seconds"])
                return kept["result"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path} is damaged: remove it to do the step anew.") from error
        self.claim()
        start = time.monotonic()
        result = compute()
        self.seconds[name] = time.monotonic() - start
        kept = {"seconds": self.seconds[name], "result": result}
        write_whole(path, json.dumps(kept, ensure_ascii=False) + "\n")
        return json.loads(json.dumps(result))
