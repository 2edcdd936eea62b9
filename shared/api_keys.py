"""The file of API keys: who may call, as whom, and how much. It holds digests only; a key itself is shown once, when it is made.

    keys:
      - id: alice-2026
        tenant: alice
        sha256: "<64 hex digits>"
        models: [SmolLM2-135M-Instruct]   # names it may ask for; left out: all
        requests_per_minute: 600          # left out: no limit
        tokens_per_minute: 100000
        weight: 2                         # share in fair queueing; left out: 1

It knows nothing of how a key travels, or of what is limited where.
"""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from shared.errors import StartupError

SECRET_PREFIX = "sk-rt-"
SECRET_BYTES = 32

# Both become parts of Redis keys.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PerMinute = Annotated[int, Field(ge=1, le=10**9)]


class ApiKey(BaseModel):
    """One key. `models` None: any; limits None: none."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Name
    tenant: Name
    sha256: Digest
    models: Annotated[list[str], Field(min_length=1)] | None = None
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    weight: Annotated[float, Field(ge=0.001, le=1000)] = 1.0


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: Annotated[list[ApiKey], Field(min_length=1)]


def new_secret() -> str:
    """A key to give away, of 256 random bits."""
    return SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def digest_of(secret: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(secret).digest()


def read_api_keys(file: Path) -> list[ApiKey]:
    """The keys in `file`, at least one. Raises StartupError, one line, which quotes no digest."""
    try:
        return _parse(file.read_text(encoding="utf-8"), file)
    except OSError as error:
        raise StartupError(f"cannot read the keys file {file}: {error.strerror}; `roadtrain keys` makes one") from None
    except UnicodeDecodeError:
        raise StartupError(f"the keys file {file} is no UTF-8 text") from None


def append_api_key(file: Path, key: ApiKey) -> None:
    """Adds `key` at the end of `file`, all else left as it is; makes the file, readable by its owner alone, if there is none.

    Raises StartupError if the file is none of keys, or has this id already.
    """
    before = file.read_text(encoding="utf-8") if file.exists() else "keys:\n"
    text = before + ("" if before.endswith("\n") else "\n") + _written(key)
    _parse(text, file)
    part = file.with_name(file.name + ".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
    # In one piece: whoever reads it meanwhile sees all of the old or all of the new.
    part.replace(file)


def _parse(text: str, file: Path) -> list[ApiKey]:
    try:
        keys = _File.model_validate(yaml.safe_load(text)).keys
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise StartupError(f"the keys file {file} is no YAML{where}") from None
    except ValidationError as error:
        raise StartupError(f"the keys file {file}: {_explained(error.errors()[0])}") from None
    for what, values in (("id", [key.id for key in keys]), ("sha256", [key.sha256 for key in keys])):
        if len(set(values)) < len(values):
            twice = next(index for index, value in enumerate(values) if value in values[:index])
            raise StartupError(f"the keys file {file}: keys.{twice}.{what} is there twice")
    return keys


def _explained(detail: Any) -> str:
    path = ".".join(str(part) for part in detail["loc"]) or "the file"
    return f"{path}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _written(key: ApiKey) -> str:
    """One item of the list. Quoted: a digest of digits alone would be a number."""
    lines = [f'  - id: "{key.id}"', f'    tenant: "{key.tenant}"', f'    sha256: "{key.sha256}"']
    if key.models is not None:
        lines.append(f"    models: {json.dumps(key.models)}")
    for name in ("requests_per_minute", "tokens_per_minute"):
        if (value := getattr(key, name)) is not None:
            lines.append(f"    {name}: {value}")
    if key.weight != 1.0:
        lines.append(f"    weight: {key.weight:g}")
    return "\n".join(lines) + "\n"
