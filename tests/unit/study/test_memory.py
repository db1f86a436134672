"""Freed memory that stays in the process: fewer page faults, as the kernel counts them."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

HAS_GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
STEPS = """
import resource
import numpy
from treft.study.memory import keep_freed_memory
{call}
for step in range(12):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [numpy.ones(1 << 21) for _ in range(4)]  # 16 MiB each
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not HAS_GLIBC, reason="another C library")
def test_steps_that_allocate_the_same_again_fault_no_pages() -> None:
    plain, kept = (
        int(subprocess.check_output([sys.executable, "-c", STEPS.format(call=call)], text=True))
        for call in ("", "keep_freed_memory()")
    )
    assert kept * 10 < plain
