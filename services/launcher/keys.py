"""`roadtrain keys FILE`: makes an API key, shows it once, and adds its digest to the file that routers read.

It knows the file and nothing of who will use the key; what it printed is nowhere else.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from shared.api_keys import ApiKey, append_api_key, digest_of, new_secret
from shared.errors import StartupError


def keys(arguments: Sequence[str]) -> int:
    """Makes one key; 0. Raises StartupError."""
    given = _parser().parse_args(list(arguments))
    secret = new_secret()
    try:
        key = ApiKey(
            id=given.id,
            tenant=given.tenant,
            sha256=digest_of(secret.encode()).hex(),
            models=given.models.split(",") if given.models is not None else None,
            requests_per_minute=given.requests_per_minute,
            tokens_per_minute=given.tokens_per_minute,
            weight=given.weight,
        )
    except ValidationError as error:
        detail = error.errors()[0]
        flag = "--" + str(detail["loc"][0]).replace("_", "-")
        raise StartupError(f"{flag}: {detail['msg'][0].lower()}{detail['msg'][1:]}") from None
    try:
        append_api_key(given.file, key)
    except OSError as error:
        raise StartupError(f"cannot write {error.filename}: {(error.strerror or 'refused').lower()}") from None
    print(secret)
    notes = f"added {key.id!r} to {given.file}; the key above is shown this once. Routers take it within a second."
    print(f"roadtrain: {notes}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="roadtrain keys", description="Makes an API key and adds its digest to FILE.")
    parser.add_argument("file", metavar="FILE", type=Path, help="file of keys, given to routers as --keys-file; made if missing")
    parser.add_argument("--id", required=True, help="name of the key, for logs and for you; to take it back, delete its entry")
    parser.add_argument("--tenant", required=True, help="whom it acts for: tenants share by weight, and share nothing else")
    parser.add_argument("--models", help="model names it may ask for, with commas; left out: all")
    parser.add_argument("--requests-per-minute", type=int, help="left out: no limit")
    parser.add_argument("--tokens-per-minute", type=int, help="tokens of prompts and outputs; left out: no limit")
    parser.add_argument("--weight", type=float, default=1.0, help="share in fair queueing (default 1)")
    return parser
