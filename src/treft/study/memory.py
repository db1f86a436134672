"""Keep freed memory in the process, for steps that allocate and free the same tensors again."""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
LARGEST_IN_HEAP = 1 << 25
"""Bytes; glibc allows no more. Tensors above it are rare in small models."""
KEPT = 1 << 30
"""Bytes that may stay free."""


def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of freed memory; nothing with another C library.

    By default it gives the tensors of a small model's step back to the kernel and gets them again,
    page by page, in the next one: a seventh of an organism's finetune. Setting either threshold
    ends glibc's own adjustment of both, so it is both or none.
    """
    with contextlib.suppress(OSError, AttributeError):
        adjust = ctypes.CDLL(None).mallopt
        if adjust(M_MMAP_THRESHOLD, LARGEST_IN_HEAP):
            adjust(M_TRIM_THRESHOLD, KEPT)
