"""What `serve` prints once everything answers: where the time went, the model, the memory, the addresses, a line to try.

It knows what children say of their start, and nothing of how any of it comes about.
"""

from collections.abc import Mapping
from typing import Any

from services.launcher.supervise import Start
from shared.config import Settings

# What to try first of a model that can do this.
TRY = {
    "generate": (
        "/v1/chat/completions",
        '{"model": "default", "messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}',
    ),
    "embed": ("/v1/embeddings", '{"model": "default", "input": ["Paris is in France.", "La France a Paris."]}'),
    "score": ("/v1/rerank", '{"model": "default", "query": "Where is Paris?", "documents": ["In France.", "It rains."]}'),
}


def summary(settings: Settings, began_at: float, starts: Mapping[str, tuple[float, Start]], now: float) -> str:
    """The lines. starts: when each child was started, and how that went; all times are of `time.monotonic`."""
    http, grpc_port, admin = settings.router.ports
    host, admin_host = settings.router.host, settings.router.admin_host
    scheme = "http" if settings.router.tls_cert_file is None else "https"
    key = "" if settings.router.keys_file is None else " -H 'Authorization: Bearer KEY'"
    name = settings.names[0]
    kinds = {kind for _, start in starts.values() for kind in start.facts.get("kinds", ())}
    path, body = next((tried for kind, tried in TRY.items() if kind in kinds), TRY["generate"])
    lines = [
        f"Roadtrain is ready after {now - began_at:.1f} s",
        *_where_the_time_went(began_at, starts, now),
        f"  model    {name}  ({settings.model_path})",
        *(_worker_line(child, start.facts) for child, (_, start) in starts.items() if "fingerprint" in start.facts),
        f"  OpenAI   {scheme}://{host}:{http}/v1      gRPC {host}:{grpc_port}      admin http://{admin_host}:{admin}",
        f"  try      curl {scheme}://{host}:{http}{path}{key} -H 'Content-Type: application/json' \\",
        f"             -d '{body}'",
        "  Ctrl-C ends it",
    ]
    return "\n".join(lines)


def _where_the_time_went(began_at: float, starts: Mapping[str, tuple[float, Start]], now: float) -> list[str]:
    """What came before the children, each child with its parts, and what came after the last of them."""
    first = min(started_at for started_at, _ in starts.values())
    ends = {name: started_at + sum(took_s for _, took_s in start.parts) for name, (started_at, start) in starts.items()}
    lines = [f"  start    serve {first - began_at:.2f} s"]
    for name, (started_at, start) in starts.items():
        parts = ", ".join(f"{part} {took_s:.2f}" for part, took_s in start.parts)
        lines.append(f"           {name} from {started_at - began_at:.2f} to {ends[name] - began_at:.2f} s: {parts}")
    lines.append(f"           then {now - max(ends.values()):.2f} s until the router took requests")
    return lines


def _worker_line(worker_id: str, facts: Mapping[str, Any]) -> str:
    # The fingerprint's first word is the model's hash; the rest is what a person wants to know.
    numerics = facts["fingerprint"].partition(" ")[2] or facts["fingerprint"]
    if "generate" not in facts["kinds"]:
        return f"  {worker_id} {numerics}; {' and '.join(facts['kinds'])}, texts of up to {facts['max_model_len']:,} tokens"
    num_tokens = facts["num_blocks"] * facts["block_size"]
    full = num_tokens // facts["max_model_len"]
    return (
        f"  {worker_id} {numerics}; KV cache of {num_tokens:,} tokens: "
        f"{full} requests of {facts['max_model_len']:,}, or more that are shorter"
    )
