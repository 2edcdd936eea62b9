"""What every service does to its process: room for many connections, and a garbage collector that stays out of the way.

It knows nothing of what the services do.
"""

import gc
import resource

# Requests leave few cycles; looking for them every 700 allocations costs more than they weigh.
GC_THRESHOLDS = (50_000, 20, 100)


def raise_file_limit() -> int:
    """Lets this process, and its children, open as many files as the system allows; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def settle() -> None:
    """Call once started: what exists now lives as long as the process, and the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
