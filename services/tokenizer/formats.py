"""How a model spells calls of tools and reasoning, as its chat template shows it. It knows nothing of how they are read."""

import re
from collections.abc import Mapping

# In this order: the templates of newer models hold the marks of older ones, too.
_CALLS = (
    ("qwen3_xml", "<function="),
    ("hermes", "<tool_call>"),
    ("mistral", "[TOOL_CALLS]"),
    ("deepseek", "<｜tool▁calls▁begin｜>"),
    ("llama3_json", "<|python_tag|>"),
    ("pythonic", "func_name1("),
    ("llama3_json", "Environment: ipython"),
)
_TOOLS = re.compile(r"\btools\b")


def template_of(templates: Mapping[str, str], *, with_tools: bool) -> str:
    """The name of the template for a chat."""
    if with_tools and "tool_use" in templates:
        return "tool_use"
    return "default" if "default" in templates else next(iter(templates))


def knows_tools(template: str) -> bool:
    """Whether a template does anything with tools."""
    return _TOOLS.search(template) is not None


def call_format(templates: Mapping[str, str]) -> str:
    """Name of the router's parser. A model that shows none is told to write as most do (tool_text.py)."""
    template = templates[template_of(templates, with_tools=True)] if templates else ""
    return next((name for name, mark in _CALLS if mark in template), "hermes")


def reasoning_format(templates: Mapping[str, str]) -> str:
    """Name of the router's parser; empty for none."""
    return "think" if any("<think>" in template or "</think>" in template for template in templates.values()) else ""
