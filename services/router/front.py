"""What all doors of one router process share: the plane behind them, settings, keys, whether they still open, what they counted.

It knows nothing of HTTP or gRPC.
"""

from collections import Counter
from dataclasses import dataclass, field

from services.router.auth import KeyRing
from services.router.batch.files import Files
from services.router.errands import Errands
from services.router.needs import Plane
from shared.config import RouterConfig, cache_dir
from shared.errors import Unavailable

RETRY_WHEN_DRAINING_S = 1.0


def going_away() -> Unavailable:
    """For a request that this process will not begin, or cannot end."""
    text = "This server is shutting down; send the request again."
    return Unavailable(text, code="draining", retry_after_s=RETRY_WHEN_DRAINING_S)


@dataclass(slots=True)
class Front:
    """One router process seen from outside. `answered` counts calls by door, endpoint and status; batches ask batch_paths.

    errands: by kind, what goes on whether or not a client waits.
    """

    plane: Plane
    config: RouterConfig
    keys: KeyRing
    draining: bool = False
    num_open: int = 0
    answered: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    batch_paths: tuple[str, ...] = ()
    errands: dict[str, Errands] = field(default_factory=dict)

    @property
    def files(self) -> Files:
        """What tenants sent for batches, and what batches made."""
        return Files(self.plane.store, self.config.files_dir or cache_dir() / "files")

    def not_ready(self) -> str | None:
        """Why this process should get no new requests now, or None."""
        return "draining" if self.draining else self.plane.not_ready()

    def admit(self) -> None:
        """Raises Unavailable for new work while this process is ending."""
        if self.draining:
            raise going_away()
