"""What the files that sentence-transformers leaves beside a model say of embeddings: which hidden states, how many tokens.

modules.json lists what a text passes: the model, a pooling, perhaps a normalisation. Anything else would change a vector
and is refused. It knows nothing of tensors.
"""

import json
from pathlib import Path
from typing import Any

from shared.errors import StartupError

_KINDS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last", "pooling_mode_cls_token": "cls"}
_KNOWN = ("Transformer", "Pooling", "Normalize")


def pooling_of(path: Path, default: str) -> str:
    """ "mean", "last" or "cls" for the model at `path`; `default` where its files do not say. Raises StartupError."""
    modules = [each for each in _read(path / "modules.json", list) or [] if isinstance(each, dict)]
    kind = default
    for module in modules:
        named = module.get("type", "").rpartition(".")[2] if isinstance(module, dict) else ""
        if named not in _KNOWN:
            raise StartupError(
                f"{path / 'modules.json'}: a module '{named}' is not supported; those that are: {', '.join(_KNOWN)}"
            )
        if named == "Pooling":
            kind = _kind(path / str(module.get("path", "")) / "config.json")
    return kind


def max_tokens_of(path: Path, most: int) -> int:
    """The most tokens the model at `path` was made to read, `most` where its files do not say."""
    stated = (_read(path / "sentence_bert_config.json", dict) or {}).get("max_seq_length")
    return min(most, stated) if isinstance(stated, int) and stated > 0 else most


def _kind(file: Path) -> str:
    stated = _read(file, dict) or {}
    chosen = [name for name, value in stated.items() if name.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in _KINDS:
        raise StartupError(f"{file}: pools by {', '.join(chosen) or 'nothing'}; supported is one of {', '.join(_KINDS)}")
    return _KINDS[chosen[0]]


def _read(file: Path, kind: type) -> Any:
    """What the JSON file holds; None if there is none."""
    if not file.is_file():
        return None
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise StartupError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise StartupError(f"{file}: must hold a JSON {'list' if kind is list else 'object'}")
    return value
