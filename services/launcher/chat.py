"""`roadtrain chat`: a conversation in the terminal with any server that speaks OpenAI's chat API.

It knows that API and nothing of how the answers come about.
"""

import contextlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from shared.config import client_key
from shared.errors import StartupError

HELP = "Enter sends, an empty line is ignored, /clear forgets the conversation, Ctrl-D or /bye ends, Ctrl-C stops an answer."


def chat(url: str) -> int:
    """Reads lines, prints answers as they come; 0 at the end of input."""
    url = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
    model = _open(f"{url}/v1/models", None).read()
    name = json.loads(model)["data"][0]["id"]
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{name} at {url}. {HELP}")
    messages: list[dict[str, str]] = []
    while (line := _read_line(interactive)) is not None:
        if line == "/bye":
            break
        if line == "/clear":
            messages.clear()
        elif line:
            messages.append({"role": "user", "content": line})
            answer = _print_answer(url, name, messages)
            messages.append({"role": "assistant", "content": answer})
    return 0


def _read_line(interactive: bool) -> str | None:
    try:
        return input("> " if interactive else "").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        print()
        return ""


def _print_answer(url: str, model: str, messages: list[dict[str, str]]) -> str:
    parts: list[str] = []
    with contextlib.suppress(KeyboardInterrupt):
        # Greedy: small models wander off at the API's default temperature of 1, and the same question gives the same answer.
        for text in _stream(url, {"model": model, "messages": messages, "stream": True, "temperature": 0}):
            print(text, end="", flush=True)
            parts.append(text)
    print()
    return "".join(parts)


def _stream(url: str, body: dict[str, Any]) -> Iterator[str]:
    """Text of the answer, piece by piece."""
    with contextlib.closing(_open(f"{url}/v1/chat/completions", body)) as response:
        for line in response:
            data = line.decode().strip().removeprefix("data: ")
            if not data.startswith("{"):
                continue
            event = json.loads(data)
            if "error" in event:
                raise StartupError(event["error"]["message"])
            for choice in event["choices"]:
                yield choice["delta"].get("content") or ""


def _open(url: str, body: dict[str, Any] | None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if key := client_key():
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=600)
    except urllib.error.HTTPError as error:
        message = error.read().decode(errors="replace")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            message = json.loads(message)["error"]["message"]
        raise StartupError(f"{url} answered {error.code}: {message[:300]}") from None
    except (urllib.error.URLError, OSError) as error:
        raise StartupError(f"no server at {url} ({getattr(error, 'reason', error)}); start one with `roadtrain serve`") from None
