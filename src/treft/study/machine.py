"""What a result was computed on."""

from __future__ import annotations

import os
import platform
import sys


def this_machine() -> dict[str, str | int]:
    """Name, system, processor, cores, Python; GPUs if the process has used PyTorch."""
    found: dict[str, str | int] = {
        "name": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found["gpus"] = ", ".join(names)
    return found


def _processor() -> str:
    """Its name, which only Linux tells in a file."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file if line.startswith("model name"))
    except OSError:
        lines = {}
    return next((name.strip() for name in lines.values()), platform.processor())
