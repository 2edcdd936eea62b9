"""What `serve` prints once everything answers: the model, the memory, the addresses, a line to try.

It knows the facts workers announce, and nothing of how they come about.
"""

import sys

from shared.config import Settings


async def print_summary(settings: Settings, took_s: float) -> None:
    """Prints to standard error, so that standard output stays free."""
    http, grpc_port, admin = settings.router.ports
    name = settings.names[0]
    host = settings.router.host
    lines = [
        f"Roadtrain is ready after {took_s:.1f} s",
        f"  model    {name}  ({settings.model_path})",
        f"  OpenAI   http://{host}:{http}/v1      gRPC {host}:{grpc_port}      admin http://{host}:{admin}",
        f"  try      curl http://{host}:{http}/v1/chat/completions -H 'Content-Type: application/json' \\",
        """             -d '{"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}'""",
        "  Ctrl-C ends it",
    ]
    print("\n".join(lines), file=sys.stderr)
