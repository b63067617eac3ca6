"""What becomes of memory that is freed: the C library keeps it for itself, or gives it back to the system."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
"""Options of glibc's mallopt."""
LARGEST_MMAP_THRESHOLD = 2**25
"""The highest that glibc takes; larger blocks always go back."""


def glibc() -> ctypes.CDLL | None:
    """Return the C library where it is glibc, which can be told what to keep; None elsewhere."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "malloc_trim") else None


def keep_freed_memory() -> None:
    """Keep what is freed, for a process that takes the same memory again and again, as training on a CPU does.

    Else every activation of an iteration goes back to the system and is taken anew, page by page, which took a fifth of
    the processor's time.  The peak is the same.  Variables with which users set this themselves have the last word.
    """
    if not is_set_by_user() and (library := glibc()):
        options = ((M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 2**26))
        for option, value in options:
            library.mallopt(option, value)


def is_set_by_user() -> bool:
    """Whether a variable tells glibc what to keep."""
    alone = any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ)
    return alone or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")


def return_large_blocks() -> None:
    """Let blocks of a megabyte go back to the system when they are freed; for a process that waits most of the time."""
    if library := glibc():
        for option, value in ((M_MMAP_THRESHOLD, 2**20), (M_TRIM_THRESHOLD, 2**21), (M_ARENA_MAX, 2)):
            library.mallopt(option, value)


def trim_memory() -> None:
    """Give free memory between used blocks back to the system."""
    if library := glibc():
        library.malloc_trim(0)
