"""Children are restarted, give up for good when told, end in order, and never outlive their parent. Real processes."""

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from services.launcher import supervise
from services.launcher.supervise import EXIT_CONFIG, Child, Supervisor


def child(name: str, code: str, *, order: int = 0, grace_s: float = 5.0) -> Child:
    return Child(name, [sys.executable, "-c", textwrap.dedent(code)], order=order, grace_s=grace_s)


def lines(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


async def until(condition, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_child_that_dies_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "FIRST_BACKOFF_S", 0.01)
    file = tmp_path / "starts"
    supervisor = Supervisor()
    await supervisor.add(child("dies", f"open({str(file)!r}, 'a').write('x\\n'); raise SystemExit(3)"))
    await until(lambda: len(lines(file)) >= 3)
    await supervisor.stop()
    assert supervisor.children[0].num_restarts >= 2


async def test_a_child_tells_once_that_it_is_ready() -> None:
    """In pieces, and however often it is started: the first whole line counts."""
    code = """
        import json, os, time
        line = json.dumps({"ends": [["imports", time.monotonic()], ["ready", time.monotonic()]], "facts": {"room": 2}}) + "\\n"
        os.write(0, line[:20].encode())
        time.sleep(0.05)
        os.write(0, line[20:].encode() + b"more")
        time.sleep(60)
    """
    supervisor = Supervisor()
    await supervisor.add(child("talks", code))
    start = await asyncio.wait_for(supervisor.children[0].ready, 10)
    assert [name for name, _ in start.parts] == ["imports", "ready"]
    assert all(took_s >= 0 for _, took_s in start.parts)
    assert start.facts == {"room": 2}
    await supervisor.stop()


async def test_a_child_that_says_so_is_not_started_again() -> None:
    supervisor = Supervisor()
    await supervisor.add(child("hopeless", f"raise SystemExit({EXIT_CONFIG})"))
    assert await asyncio.wait_for(supervisor.failure(), 10) == "hopeless"
    await supervisor.stop()


async def test_a_child_that_started_once_is_started_again_whatever_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that comes back while Redis is away must not take the whole system with it."""
    monkeypatch.setattr(supervise, "FIRST_BACKOFF_S", 0.01)
    file = tmp_path / "starts"
    code = f"""
        open({str(file)!r}, 'a').write('x\\n')
        raise SystemExit({EXIT_CONFIG} if open({str(file)!r}).read().count('x') == 2 else 3)
    """
    supervisor = Supervisor()
    await supervisor.add(child("back too soon", code))
    await until(lambda: len(lines(file)) >= 3)
    await supervisor.stop()


async def test_children_end_in_order_and_a_deaf_one_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "ends"
    polite = f"""
        import signal, sys, time
        def end(*_):
            open({str(file)!r}, 'a').write(sys.argv[1] + '\\n'); sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        open({str(tmp_path)!r} + '/up-' + sys.argv[1], 'w').close()
        time.sleep(60)
    """
    deaf = f"""
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open({str(tmp_path)!r} + '/up-deaf', 'w').close()
        time.sleep(60)
    """
    supervisor = Supervisor()
    for name, order in (("second", 2), ("first", 1)):
        entry = child(name, polite, order=order)
        entry.command = [*entry.command, name]
        await supervisor.add(entry)
    await supervisor.add(child("deaf", deaf, order=1, grace_s=0.2))
    await until(lambda: len(list(tmp_path.glob("up-*"))) == 3)
    await supervisor.stop()
    assert lines(file) == ["first", "second"]
    assert [entry.process.returncode for entry in supervisor.children] == [0, 0, -9]


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """`serve` is killed outright; the pipe closes; the child notices."""
    pid_file = tmp_path / "pid"
    grandchild = f"import os, sys; open({str(pid_file)!r}, 'w').write(str(os.getpid()) + ' '); sys.stdin.read()"
    parent = f"""
        import asyncio, sys
        from services.launcher.supervise import Child, Supervisor
        async def main():
            supervisor = Supervisor()
            await supervisor.add(Child("c", [sys.executable, "-c", {grandchild!r}], order=0, grace_s=1))
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(parent)], cwd=root)

    async def check() -> None:
        await until(lambda: bool(lines(pid_file)))
        process.kill()
        process.wait()
        await until(lambda: not Path(f"/proc/{lines(pid_file)[0]}/exe").exists() or is_zombie(int(lines(pid_file)[0])))

    asyncio.run(check())


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return not os.path.exists(f"/proc/{pid}")
