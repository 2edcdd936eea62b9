"""Settings from flags, environment and file, in that order, and every mistake named in one line."""

from pathlib import Path

import pytest

from shared.config import Settings, load
from shared.errors import StartupError


def test_defaults_are_right_without_a_word() -> None:
    settings = load()
    assert settings.router.ports == (8000, 8001, 8002)
    assert settings.names == ("SmolLM2-135M-Instruct", "default")


def test_flag_beats_environment_beats_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "roadtrain.yaml"
    file.write_text("router:\n  port: 1000\n  host: 127.0.0.9\n  max_queued_requests: 7\n")
    monkeypatch.setenv("ROADTRAIN_CONFIG", str(file))
    monkeypatch.setenv("ROADTRAIN_ROUTER__PORT", "2000")
    monkeypatch.setenv("ROADTRAIN_ROUTER__HOST", "127.0.0.8")
    router = load(["--port", "3000"]).router
    assert (router.port, router.host, router.max_queued_requests) == (3000, "127.0.0.8", 7)


def test_a_file_written_for_a_child_reads_back_the_same(tmp_path: Path) -> None:
    import json

    settings = load(["--kv-memory", "2GiB", "--kv-dtype", "int8", "--served-names", "a,b", "--runner", "sim"])
    file = tmp_path / "child.json"
    file.write_text(json.dumps(settings.model_dump(mode="json", exclude_none=True)))
    assert load(["--config", str(file)]).model_dump() == settings.model_dump()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prot", "1"], "unknown argument --prot; did you mean --port?"),
        (["--port", "x"], "router.port"),
        (["--port"], "expected one argument"),
        (["--runner", "gpu"], "'model' or 'sim'"),
        (["--kv-dtype", "int4"], "'float32', 'float16' or 'int8'"),
        (["--max-num-seqs", "0"], "greater than or equal to 1"),
        (["--config", "/nowhere.yaml"], "no such configuration file: /nowhere.yaml"),
        (["--config"], "--config needs a file name"),
    ],
)
def test_mistakes_are_one_line_that_names_them(arguments: list[str], says: str) -> None:
    with pytest.raises(StartupError) as caught:
        load(arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROADTRAIN_ROUTER__PROT", "1")
    with pytest.raises(StartupError, match="did you mean ROADTRAIN_ROUTER__PORT"):
        load()


def test_an_unknown_key_in_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "roadtrain.yaml"
    file.write_text("router:\n  prot: 1\n")
    with pytest.raises(StartupError, match=r"unknown setting router\.prot; did you mean router\.port"):
        load(["--config", str(file)])


def test_settings_are_frozen() -> None:
    settings: Settings = load()
    with pytest.raises(ValueError, match="frozen"):
        settings.router.port = 1
