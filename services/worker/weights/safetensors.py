"""Hugging Face directories: config.json, generation_config.json, and safetensors in one file or many.

It knows nothing of what the numbers in a config mean.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from services.worker.weights.checkpoint import Checkpoint, Entry
from shared.errors import StartupError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SAMPLE_BYTES = 4096


def open_safetensors(directory: Path) -> Checkpoint:
    """The checkpoint in `directory`; tensor data stay on disk until asked for."""
    config_path = directory / "config.json"
    config = _json(config_path)
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "?") if isinstance(quantised, dict) else quantised
        raise StartupError(
            f"{config_path}: quantisation '{method}' is not supported; use an fp32, fp16 or bf16 checkpoint or a GGUF file"
        )
    generation = directory / "generation_config.json"
    eos = (_json(generation) if generation.exists() else {}).get("eos_token_id", config.get("eos_token_id"))
    listed = [eos] if isinstance(eos, int) else eos or []
    if not isinstance(listed, list) or not all(isinstance(token, int) for token in listed):
        raise StartupError(f"{directory}: 'eos_token_id' is {eos!r}; it must be a whole number or a list of them")
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    entries: dict[str, Entry] = {}
    for file in _files(directory):
        for name, entry in _entries(file, digest).items():
            if name in entries:
                raise StartupError(f"{file}: tensor '{name}' is also in {entries[name].file.name}")
            entries[name] = entry
    return Checkpoint(directory, config, str(config_path), entries, str, digest.hexdigest(), tuple(listed))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise StartupError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise StartupError(f"{path}: must hold a JSON object")
    return value


def _files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if not index.exists():
        if not (directory / SINGLE).exists():
            raise StartupError(f"{directory}: has neither {SINGLE} nor {INDEX}; only safetensors and GGUF weights are read")
        return [directory / SINGLE]
    placed = _json(index).get("weight_map")
    names = set(placed.values()) if isinstance(placed, dict) else set()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise StartupError(f"{index}: 'weight_map' must map tensor names to file names in the same directory")
    for name in sorted(names):
        if not (directory / name).exists():
            raise StartupError(f"{directory / name}: is missing, but {INDEX} names it; download the model again")
    return [directory / name for name in sorted(names)]


def _entries(file: Path, digest: "hashlib._Hash") -> dict[str, Entry]:
    """The tensor table of one file; its header, size and a sample of every tensor go into the digest."""
    try:
        opened = safe_open(file, framework="pt")  # checks header and lengths; a broken header is not parsed below
    except (SafetensorError, OSError) as error:
        raise StartupError(f"{file}: truncated or not a safetensors file: {error}") from error
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = stream.read(length)
        digest.update(header)
        digest.update(str(file.stat().st_size).encode())
        table: Mapping[str, Any] = json.loads(header)
        entries = {}
        for name, info in table.items():
            if name == "__metadata__":
                continue
            begin, end = info["data_offsets"]
            stream.seek(8 + length + begin)
            digest.update(stream.read(min(SAMPLE_BYTES, end - begin)))
            read = partial(opened.get_tensor, name)
            entries[name] = Entry(file, name, tuple(info["shape"]), info["dtype"], end - begin, read)
    return entries
