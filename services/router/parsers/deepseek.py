"""DeepSeek V3's calls, V3.1's too: between marks a name and its arguments, which V3 puts into a fenced block of Markdown.

It knows nothing of how objects are read.
"""

import re
from collections.abc import Sequence

from services.router.parsers.arguments import Arguments, HeadedCall
from services.router.parsers.calls import MarkedCalls, Marks
from services.router.parsers.lark import CallableTool, calls, literal
from shared.pb import types_pb2

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"

# What may follow a call is its fence, too.
_MARKS = Marks(begin=(CALLS, CALL), end=(CALLS_END, CALL_END, "```"))
_BEGIN = rf"\s{{0,8}}(?:{CALL})?\s{{0,8}}"
_FENCED = re.compile(rf"{_BEGIN}function{SEPARATOR}([A-Za-z0-9_.-]{{1,64}})\s{{0,8}}```json\s{{0,8}}(?=\{{)")
_PLAIN = re.compile(rf"{_BEGIN}([A-Za-z0-9_.-]{{1,64}}){SEPARATOR}\s{{0,8}}(?=\{{)")
_HEADS = (
    (_FENCED, lambda budget, found: Arguments(budget, found[1])),
    (_PLAIN, lambda budget, found: Arguments(budget, found[1])),
)


def parser(reading: types_pb2.Reading) -> MarkedCalls:
    """Reads one choice."""
    return MarkedCalls(_MARKS, lambda budget: HeadedCall(budget, _HEADS))


def grammar(tools: Sequence[CallableTool], *, many: bool) -> str:
    """See lark.calls."""

    def spell(tool: CallableTool) -> str:
        head, end = f"{CALL}function{SEPARATOR}{tool.name}\n```json\n", f"\n```{CALL_END}"
        return f"{literal(head)} {tool.arguments} {literal(end)}"

    return calls(tools, spell, many=many, between="\n", before=CALLS, after=CALLS_END)
