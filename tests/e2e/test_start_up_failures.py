"""What stops `roadtrain serve` from starting ends it with one line that says so, and leaves nothing behind."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from services.launcher.pull import find_or_fetch
from tests.stack import ROOT, environment, free_ports, processes_of, roadtrain


def serve(folder: Path, *flags: str, **variables: str) -> tuple[int, list[str]]:
    """Exit code and lines of a serve that must fail; checks that no file and no process stays."""
    command = roadtrain("serve", "--port", str(free_ports()), *flags)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        env={**environment(folder), **variables},
        stdin=subprocess.DEVNULL,
    )
    assert not list(folder.glob("roadtrain-*")), "its folder is still there"
    assert not processes_of(folder)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("roadtrain")]


def test_a_port_in_use(tmp_path: Path) -> None:
    port = free_ports()
    with socket.create_server(("127.0.0.1", port + 1)):
        code, lines = serve(tmp_path, "--port", str(port))
    assert code == 1
    assert len(lines) == 1
    assert f"port {port + 1} (gRPC)" in lines[0]
    assert "--port" in lines[0]


def test_no_redis_server(tmp_path: Path) -> None:
    """A Python with no redis-server beside it, and none on PATH."""
    lonely = tmp_path / "bin"
    lonely.mkdir()
    code = "import sys; sys.executable = {!r}; from services.launcher.__main__ import main; main()".format(str(lonely / "python"))
    command = [sys.executable, "-c", code, "serve", "--port", str(free_ports())]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=60, env={**environment(tmp_path), "PATH": str(lonely)}
    )
    assert done.returncode == 1
    assert "no redis-server found" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--redis-url", "redis://127.0.0.1:9"), "redis"),
        (("--model", "/nowhere/model.gguf"), "no model at /nowhere/model.gguf"),
        (("--host", "0.0.0.0"), "--insecure"),
        (("--kv-memory", "1MiB"), "kv"),
        (("--max-model-len", "1000000"), "1000000"),
        (("--unknown-flag",), "unknown argument --unknown-flag"),
    ],
)
def test_wrong_settings(flags: tuple[str, ...], says: str, tmp_path: Path) -> None:
    code, lines = serve(tmp_path, *flags)
    assert code == 1
    assert says in lines[0].lower() if says.islower() else says in lines[0]


def broken(folder: Path, how: str) -> Path:
    target = folder / f"{how}.gguf"
    shutil.copyfile(find_or_fetch("smollm2"), target)
    with target.open("r+b") as file:
        if how == "truncated":
            file.truncate(50_000_000)
        else:
            file.write(b"NOPE")
    return target


@pytest.mark.parametrize("how", ["truncated", "magic"])
def test_a_broken_model_file_is_named(how: str, tmp_path: Path) -> None:
    file = broken(tmp_path, how)
    code, lines = serve(tmp_path, "--model", str(file))
    assert code == 1
    assert file.name in lines[0], lines
