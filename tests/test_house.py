"""The rules of the house (DESIGN section 3), checked on the source text alone; nothing is imported or run.

It knows what files look like, not what they do.
"""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE, MAX_FUNCTION, MAX_P95 = 400, 80, 40
ROOMS = ("shared", "kernels", "services", "bench", "tests", "protos", "deploy")

# Inside services/worker each name may import those before it; engine is a room apart.
WORKER_ORDER = ("batch", "backends", "layers", "weights", "models", "runtime", "consumer", "server", "__main__")


@cache
def files(suffix: str = ".py") -> list[Path]:
    """Source files git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = sorted({ROOT / name for name in listed.stdout.splitlines() if name.endswith(suffix)})
    return [path for path in paths if path.exists() and path.relative_to(ROOT).parts[0] in ROOMS]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """Dotted names of every module that `path` imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def functions(path: Path) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append((f"{name_of(path)}:{node.name}", (node.end_lineno or 0) - node.lineno + 1))
    return found


def test_files_are_small() -> None:
    too_long = {name_of(p): n for p in files() if (n := len(p.read_text().splitlines())) > MAX_FILE}
    assert not too_long


def test_functions_are_small() -> None:
    lengths = [entry for path in files() for entry in functions(path)]
    assert not [entry for entry in lengths if entry[1] > MAX_FUNCTION]
    ordered = sorted(length for _, length in lengths)
    assert ordered[int(len(ordered) * 0.95)] <= MAX_P95


def test_modules_say_what_they_are_for() -> None:
    assert not [name_of(p) for p in files() if p.read_text().strip() and not ast.get_docstring(tree(p))]


def test_service_modules_say_what_they_do_not_know() -> None:
    silent = []
    for path in files():
        if path.relative_to(ROOT).parts[0] not in ("services", "shared", "kernels"):
            continue
        docstring = ast.get_docstring(tree(path)) or ""
        if not re.search(r"\b(knows? (no|nothing|neither|only)|not know|never (sees?|knows?)|nothing of)\b", docstring):
            silent.append(name_of(path))
    assert not silent


def test_environment_is_read_in_one_place() -> None:
    readers = []
    for path in files():
        if name_of(path) in ("shared/config.py", "tests/test_house.py"):
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv"):
                readers.append(f"{name_of(path)}:{node.lineno}")
    assert not readers


def test_no_banned_constructs() -> None:
    banned = []
    for path in files():
        banned += [f"{name_of(path)}: import {name}" for name in imports(path) & {"pickle", "cloudpickle", "dill", "marshal"}]
        for node in ast.walk(tree(path)):
            where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Global):
                banned.append(f"{where} global")
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                banned.append(f"{where} bare except")
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in ("eval", "exec", "torch.load", "yaml.load", "os.system"):
                    banned.append(f"{where} {called}")
    assert not banned


@pytest.mark.parametrize("room", ["shared", "services/router", "services/tokenizer", "services/launcher"])
def test_rooms_that_meet_input_use_no_assert(room: str) -> None:
    """Under python -O an assert is gone; what faces the outside must raise."""
    found = []
    for path in files():
        if name_of(path).startswith(room):
            found += [f"{name_of(path)}:{node.lineno}" for node in ast.walk(tree(path)) if isinstance(node, ast.Assert)]
    assert not found


def service_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[1]


def test_imports_go_one_way() -> None:
    wrong = []
    for path in files():
        room = path.relative_to(ROOT).parts[0]
        for name in imports(path):
            top, *rest = name.split(".")
            if (
                (room == "shared" and top in ("torch", "triton", "services", "kernels", "tests", "bench"))
                or (room == "kernels" and top in ("shared", "services", "tests", "bench"))
                or (room == "services" and top in ("tests", "bench"))
                or (room == "services" and top == "kernels" and service_of(path) != "worker")
                or (room == "services" and top == "torch" and service_of(path) != "worker")
                or (room == "services" and top == "services" and rest and service_of(path) not in (rest[0], "launcher"))
            ):
                wrong.append(f"{name_of(path)} imports {name}")
    assert not wrong


def test_imports_inside_the_worker_go_up_the_list() -> None:
    wrong = []
    for path in files():
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[:2] != ("services", "worker") or len(parts) < 3:
            continue
        for name in imports(path):
            target = name.split(".")
            if target[:2] == ["services", "worker"] and len(target) > 2 and not allowed_in_worker(parts, target):
                wrong.append(f"{name_of(path)} imports {name}")
            if parts[2] == "engine" and target[0] == "shared" and target[1:2] not in (["sampling"], ["prefix"]):
                wrong.append(f"{name_of(path)} imports {name}")
            if parts[2] == "engine" and target[0] in ("torch", "kernels", "numpy", "redis", "grpc"):
                wrong.append(f"{name_of(path)} imports {name}")
    assert not wrong


def allowed_in_worker(source: tuple[str, ...], target: list[str]) -> bool:
    room, other = source[2], target[2]
    if room == other or room == "__main__":
        return True
    if room == "engine":
        return False
    if other == "engine":
        return room not in WORKER_ORDER[:5] and (room != "runtime" or target[3:4] == ["step"])
    if room in WORKER_ORDER and other in WORKER_ORDER:
        return WORKER_ORDER.index(other) < WORKER_ORDER.index(room)
    return other != "__main__"


def test_every_proto_field_has_a_comment() -> None:
    bare = []
    for path in files(".proto"):
        previous = ""
        for number, line in enumerate(path.read_text().splitlines(), 1):
            text = line.strip()
            declares = re.match(r"(message|enum|service|rpc|oneof)\b|[\w<>, .]+ \w+ = \d+;", text)
            if declares and not previous.startswith("//") and "reserved" not in text and not text.startswith("syntax"):
                bare.append(f"{name_of(path)}:{number} {text}")
            previous = text
    assert not bare


def test_every_op_has_a_reference_and_a_row() -> None:
    table = (ROOT / "kernels" / "__init__.py").read_text()
    ops = sorted({path.parent for path in files() if path.parent.parent == ROOT / "kernels"})
    assert ops
    for folder in ops:
        assert (folder / "reference.py").exists(), folder
        assert f'"{folder.name}"' in table or f"kernels.{folder.name}" in table, (
            f"{folder.name} has no row in kernels/__init__.py"
        )


def test_every_architecture_has_a_row_in_the_logits_test() -> None:
    table = re.search(r"ARCHITECTURES[^=]*= \{(.*?)\n\}", (ROOT / "services/worker/models/__init__.py").read_text(), re.DOTALL)
    assert table
    named = set(re.findall(r'"(\w+ForCausalLM)"', table[1]))
    assert named
    tested = "".join(path.read_text() for path in files() if "tests/worker/models" in name_of(path))
    assert not {name for name in named if name not in tested}


def test_the_readme_map_equals_the_tree() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 220
    listed = set(re.findall(r"^([\w./-]+/)\s", readme.split("## The map")[1].split("```")[1], re.MULTILINE))
    holding = {path.parent for suffix in (".py", ".proto", ".lua", ".cpp") for path in files(suffix)}
    real = {name_of(folder) + "/" for folder in holding if not name_of(folder).startswith("tests/")} | {"tests/"}
    assert listed == real
