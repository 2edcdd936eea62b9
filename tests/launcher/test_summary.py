"""Where the time of a start went, as `serve` prints it."""

from pathlib import Path
from typing import Any

from services.launcher.summary import summary
from services.launcher.supervise import Start
from shared.config import Settings

FACTS: dict[str, Any] = {"fingerprint": "abc F32 fast", "num_blocks": 2048, "block_size": 16, "max_model_len": 8192}
FACTS |= {"kinds": ["generate", "embed"]}


def test_parts_are_told_from_the_command_on() -> None:
    starts = {
        "worker-0": (100.5, Start([("imports", 1.0), ("torch", 2.0), ("ready", 0.25)], FACTS)),
        "router-0": (102.0, Start([("ready", 1.0)], {})),
    }
    lines = summary(Settings(model_path=Path("/m.gguf")), 100.0, starts, 104.0).splitlines()
    assert lines[:5] == [
        "Roadtrain is ready after 4.0 s",
        "  start    serve 0.50 s",
        "           worker-0 from 0.50 to 3.75 s: imports 1.00, torch 2.00, ready 0.25",
        "           router-0 from 2.00 to 3.00 s: ready 1.00",
        "           then 0.25 s until the router took requests",
    ]
    assert any("worker-0 F32 fast; KV cache of 32,768 tokens: 4 requests of 8,192" in line for line in lines)
    assert not any(line.startswith("  router-0") for line in lines)
    assert any("/v1/chat/completions" in line for line in lines)


def test_an_encoder_is_shown_for_what_it_can_do() -> None:
    starts = {"worker-0": (0.0, Start([("ready", 1.0)], FACTS | {"kinds": ["embed"], "max_model_len": 256}))}
    lines = summary(Settings(model_path=Path("/m")), 0.0, starts, 1.0).splitlines()
    assert any("worker-0 F32 fast; embed, texts of up to 256 tokens" in line for line in lines)
    assert any("/v1/embeddings" in line for line in lines)
    assert not any("chat" in line for line in lines)
