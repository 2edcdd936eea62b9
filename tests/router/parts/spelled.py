"""Answers as models spell them, by parser: what was written, and what it says. It knows nothing of parsers."""

from dataclasses import dataclass

from shared.pb import types_pb2

TOOLS = [
    types_pb2.ToolShape(name="f", text_parameters=["s"]),
    types_pb2.ToolShape(name="get_weather", text_parameters=["city"]),
]
D = "｜"
BEGIN, END = f"<{D}tool▁calls▁begin{D}>", f"<{D}tool▁calls▁end{D}>"
CALL, SEP, CALL_END = f"<{D}tool▁call▁begin{D}>", f"<{D}tool▁sep{D}>", f"<{D}tool▁call▁end{D}>"


@dataclass(frozen=True)
class Spelled:
    parser: str
    text: str
    content: str
    calls: tuple[tuple[str, str], ...] = ()

    @property
    def reading(self) -> types_pb2.Reading:
        return types_pb2.Reading(tool_parser=self.parser, tools=TOOLS)


def hermes(name: str, arguments: str, key: str = "arguments") -> str:
    return f'<tool_call>\n{{"name": "{name}", "{key}": {arguments}}}\n</tool_call>'


A, B = '{"a": [1, {"b": "}</tool_call>\\""}], "c": null}', '{"city": "Köln \\ud83d\\ude00"}'

WELL = [
    Spelled("hermes", "Just text, {} and <b>.", "Just text, {} and <b>."),
    Spelled("hermes", hermes("f", A), "", (("f", A),)),
    Spelled(
        "hermes",
        "Let me see. \n" + hermes("f", A) + "\n" + hermes("get_weather", B) + "\n",
        "Let me see.",
        (("f", A), ("get_weather", B)),
    ),
    Spelled("hermes", hermes("f", "{}", "parameters") + " done", " done", (("f", "{}"),)),
    Spelled("hermes", '<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>', "", (("f", '{"x": 1}'),)),
    Spelled("hermes", '<tool_call>{"name": "f"}</tool_call>', "", (("f", "{}"),)),
    Spelled("hermes", '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', "", (("f", '{"x": 1}'),)),
    Spelled("hermes", '<tool_call>{"name": "f", "arguments": null, "id": 7}', "", (("f", "{}"),)),
    Spelled("llama3_json", '{"name": "f", "parameters": {"x": "y"}}', "", (("f", '{"x": "y"}'),)),
    Spelled(
        "llama3_json",
        ' <|python_tag|>{"name": "f", "parameters": {}}; {"name": "f", "parameters": {"x": 2}}',
        "",
        (("f", "{}"), ("f", '{"x": 2}')),
    ),
    Spelled("llama3_json", '{"type": "function", "name": "f", "arguments": {}}', "", (("f", "{}"),)),
    Spelled(
        "mistral",
        '[TOOL_CALLS] [{"name": "f", "arguments": {"x": [1]}}, {"name": "get_weather", "arguments": {}}]',
        "",
        (("f", '{"x": [1]}'), ("get_weather", "{}")),
    ),
    Spelled(
        "mistral",
        'So: [TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]get_weather{"city": "B"}',
        "So:",
        (("f", '{"x": 1}'), ("get_weather", '{"city": "B"}')),
    ),
    Spelled("mistral", '[TOOL_CALLS]f[CALL_ID]abc123XYZ[ARGS]{"x": 1}', "", (("f", '{"x": 1}'),)),
    Spelled(
        "pythonic",
        "[f(a=1, s='it\\'s [ok] (x)', c=[True, None, {'k': 1.5}]), get_weather(city=\"K\\u00f6ln\")]",
        "",
        (("f", '{"a": 1, "s": "it\'s [ok] (x)", "c": [true, null, {"k": 1.5}]}'), ("get_weather", '{"city": "Köln"}')),
    ),
    Spelled("pythonic", "[f()]", "", (("f", "{}"),)),
    Spelled("pythonic", "[f(a=(1, 2,), b=[],)]", "", (("f", '{"a": [1, 2], "b": []}'),)),
    Spelled(
        "qwen3_xml",
        '<tool_call>\n<function=f>\n<parameter=s>\nline 1\n"line" 2\n</parameter>\n'
        "<parameter=n>\n12\n</parameter>\n</function>\n</tool_call>",
        "",
        (("f", '{"s": "line 1\\n\\"line\\" 2", "n": 12}'),),
    ),
    Spelled(
        "qwen3_xml",
        "Hm.\n<function=get_weather><parameter=city>12</parameter></function>\n<function=f></function>",
        "Hm.",
        (("get_weather", '{"city": "12"}'), ("f", "{}")),
    ),
    Spelled(
        "qwen3_xml",
        '<tool_call><function=f><parameter=l>[1, {"a": 2}]</parameter><parameter=b>True</parameter>'
        "<parameter=w>well</parameter></tool_call>",
        "",
        (("f", '{"l": [1, {"a": 2}], "b": true, "w": "well"}'),),
    ),
    Spelled(
        "deepseek",
        f"Ok{BEGIN}{CALL}function{SEP}f\n```json\n{A}\n```{CALL_END}\n{CALL}function{SEP}get_weather\n```json\n{B}\n```{CALL_END}{END}",
        "Ok",
        (("f", A), ("get_weather", B)),
    ),
    Spelled("deepseek", f"{BEGIN}{CALL}f{SEP}{A}{CALL_END}{CALL}f{SEP}{{}}{CALL_END}{END}", "", (("f", A), ("f", "{}"))),
]

# What is no call, whole or in part, is content to the last character.
ILL = [
    ("hermes", "<tool_call>"),
    ("hermes", "a <tool_call> is <tool_call>{} or </tool_call>"),
    ("hermes", '<tool_call>{"name": 1, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", \'arguments\': {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f f", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>[{"name": "f"}]</tool_call>'),
    ("hermes", "  \n </tool_call> <tool_cal"),
    ("hermes", '<tool_call>{"name": "f", "argum'),
    ("llama3_json", '{"name": "g", "parameters": {}}'),
    ("llama3_json", '{"answer": {"name": "f", "parameters": {}}}'),
    ("llama3_json", 'See {"name": "f", "parameters": {}}'),
    ("llama3_json", '<|python_tag|>brave_search.call(query="x")'),
    ("mistral", "[TOOL_CALLS] no"),
    ("mistral", "[TOOL_CALLS][]"),
    ("mistral", "[TOOL_CALLS]f[ARGS]1"),
    ("mistral", '[TOOL_CALLS][{"name": 3}]'),
    ("pythonic", "[f](http://x)"),
    ("pythonic", "[f(g(1))]"),
    ("pythonic", "[f(a=1"),
    ("pythonic", "[h(a=1)]"),
    ("pythonic", "[f(a=1.2.3)]"),
    ("pythonic", "[f(1, 2)]"),
    ("pythonic", "[f(a=1 if b else c)]"),
    ("qwen3_xml", '<tool_call>{"name": "f"}</tool_call>'),
    ("qwen3_xml", "<function=f x>"),
    ("deepseek", f"{BEGIN}{CALL}function{SEP}f\n```python\n{{}}"),
    ("deepseek", f"x ``` {END} {SEP}"),
]
