"""A model's text side as its files state it, in one shape whatever the files are.

`rules` is a Hugging Face tokenizer.json as plain data. It knows nothing of encoding or rendering.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Rules = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TextSource:
    """What was read from `path`.

    templates: chat template sources by name, "default" the ordinary one; may be empty.
    template_tokens: bos_token, eos_token and their like, as templates may write them.
    context_len: positions the model was made for, 0 if unknown.
    """

    path: Path
    rules: Rules
    templates: Mapping[str, str] = field(default_factory=dict)
    template_tokens: Mapping[str, str] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()
    context_len: int = 0
