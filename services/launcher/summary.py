"""What `serve` prints once everything answers: the model, the memory, the addresses, a line to try.

It knows the facts workers announce, and nothing of how they come about.
"""

import sys
from collections.abc import Mapping
from typing import Any

from shared.config import Settings
from shared.errors import Unavailable
from shared.queue.connection import connect
from shared.queue.registry import Registry


async def print_summary(settings: Settings, took_s: float) -> None:
    """Prints to standard error, so that standard output stays free."""
    http, grpc_port, admin = settings.router.ports
    host = settings.router.host
    name = settings.names[0]
    body = '{"model": "default", "messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}'
    lines = [
        f"Roadtrain is ready after {took_s:.1f} s",
        f"  model    {name}  ({settings.model_path})",
        *(_worker_line(facts) for facts in await _workers(settings)),
        f"  OpenAI   http://{host}:{http}/v1      gRPC {host}:{grpc_port}      admin http://{host}:{admin}",
        f"  try      curl http://{host}:{http}/v1/chat/completions -H 'Content-Type: application/json' \\",
        f"             -d '{body}'",
        "  Ctrl-C ends it",
    ]
    print("\n".join(lines), file=sys.stderr)


async def _workers(settings: Settings) -> list[Mapping[str, Any]]:
    redis = connect(str(settings.redis_url))
    try:
        return [{"worker_id": worker.worker_id, **worker.facts} for worker in await Registry(redis).workers()]
    except Unavailable:
        return []
    finally:
        await redis.aclose()


def _worker_line(facts: Mapping[str, Any]) -> str:
    # The fingerprint's first word is the model's hash; the rest is what a person wants to know.
    numerics = facts["fingerprint"].partition(" ")[2] or facts["fingerprint"]
    num_tokens = facts["num_blocks"] * facts["block_size"]
    full = num_tokens // facts["max_model_len"]
    return (
        f"  {facts['worker_id']} {numerics}; KV cache of {num_tokens:,} tokens: "
        f"{full} requests of {facts['max_model_len']:,}, or more that are shorter"
    )
