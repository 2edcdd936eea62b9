"""The `roadtrain` command under libfaketime, which refuses every time.sleep when it leaves the monotonic clock alone.

Version 0.9.10 does; waits of other kinds are right. It knows nothing of what the services do.
"""

import threading
import time

from services.launcher.__main__ import main


def _sleep(seconds: float) -> None:
    threading.Event().wait(seconds)


if __name__ == "__main__":
    time.sleep = _sleep
    main()
