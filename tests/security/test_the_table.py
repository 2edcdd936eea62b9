"""The table in docs/security.md: every number has a row, and what it names exists. It knows nothing of what tests do."""

import ast
import re
from functools import cache

from tests.stack import ROOT
from tests.test_house import tree

TABLE = ROOT / "docs" / "security.md"
NUMBERS = {*range(1, 12), *range(20, 35), *range(40, 55), *range(60, 67), *range(70, 78)}

# Of rooms that are being built beside this one: checked from when they are there.
COMING = {
    "tests/e2e/test_mtls.py",
    "tests/router/doors/test_door_keys.py",
    "tests/router/doors/test_door_keys_grpc.py",
    "tests/router/doors/test_door_tokenize.py",
    "tests/shared/queue/test_redis_users.py",
}


@cache
def rows() -> dict[int, str]:
    """What stands in each row, by its number."""
    return {int(number): rest for number, rest in re.findall(r"^\| (\d\d) \|(.*)\|$", TABLE.read_text(), re.MULTILINE)}


@cache
def named_here() -> dict[str, str]:
    """File of each test in this folder."""
    found = {}
    for path in (ROOT / "tests" / "security").glob("test_*.py"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found[node.name] = path.name
    return found


def test_every_number_has_a_row_that_names_a_test_or_says_why_not() -> None:
    assert set(rows()) == NUMBERS
    for number, row in rows().items():
        assert re.search(r"`test_\w+`|`tests/[\w/.]+|Not applicable", row), number


def test_every_test_that_is_named_exists() -> None:
    text = TABLE.read_text()
    for name in re.findall(r"`(test_(?!.*\.py)\w+)`", text):
        assert name in named_here(), name
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        if file in COMING and not (ROOT / file).exists():
            continue
        assert (ROOT / file).exists(), file
        assert not name or re.search(rf"def {name}\(", (ROOT / file).read_text()), (file, name)
    for file in re.findall(r"`(\w+\.py)`", text):
        assert (ROOT / "tests" / "security" / file).exists(), file


def test_every_numbered_test_is_named() -> None:
    text = TABLE.read_text()
    assert not [
        name for name in named_here() if name.startswith("test_sec_") and f"`{name}`" not in text and not in_make_test(name)
    ]


def in_make_test(name: str) -> bool:
    """Those that only say another row's test once more."""
    return name in {"test_sec_46_the_refusal_names_the_prompt", "test_sec_46_what_fits_is_never_refused_unread"}
