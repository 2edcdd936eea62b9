"""What every service does to its process: room for many connections, and a garbage collector that stays out of the way.

It knows nothing of what the services do.
"""

import ctypes
import gc
import resource

# Requests leave few cycles; looking for them every 700 allocations costs more than they weigh.
GC_THRESHOLDS = (50_000, 20, 100)


def raise_file_limit() -> int:
    """Lets this process, and its children, open as many files as the system allows; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def begin() -> None:
    """Call first: nearly all that a starting process makes stays, and looking for what does not costs up to a quarter of it."""
    gc.disable()


def settle() -> None:
    """Call once started: what exists now lives as long as the process, and the collector need not look at it again.

    What starting has used up goes back to the system.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(ctypes.c_size_t(0))
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    gc.enable()
