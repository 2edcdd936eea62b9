"""What refuses to start: a door for other machines without keys and TLS, a port between services without certificates."""

import subprocess
from pathlib import Path

import pytest

from services.launcher.exposure import check_exposure
from shared.config import RouterConfig, Settings, TokenizerConfig, WorkerConfig, load
from shared.errors import StartupError
from tests.stack import ROOT, environment, roadtrain

KEYS, CERT = {"keys_file": Path("keys.yaml")}, {"tls_cert_file": Path("cert.pem"), "tls_key_file": Path("key.pem")}
PROXY = {"behind_proxy": True}


@pytest.mark.parametrize(
    ("router", "says"),
    [
        ({}, ("--host 0.0.0.0", "--keys-file", "--tls-cert-file", "--behind-proxy", "--insecure")),
        (KEYS, ("unencrypted", "--tls-cert-file", "--behind-proxy", "--insecure")),
        (CERT, ("anyone use the model", "roadtrain keys", "--insecure")),
        (PROXY, ("anyone use the model",)),
        (KEYS | CERT, ()),
        (KEYS | PROXY, ()),
    ],
)
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_a_door_to_other_machines_needs_keys_and_tls(host: str, router: dict[str, object], says: tuple[str, ...]) -> None:
    settings = Settings(router=RouterConfig(host=host, **router))
    check_exposure(settings.model_copy(update={"insecure": True}), "router")
    if not says:
        check_exposure(settings, "router")
        return
    with pytest.raises(StartupError) as refused:
        check_exposure(settings, "router")
    for words in says:
        assert words.replace("0.0.0.0", host) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_door_to_this_machine_needs_nothing(host: str) -> None:
    check_exposure(Settings(router=RouterConfig(host=host)), "router")


def test_metrics_are_not_shown_to_other_machines() -> None:
    with pytest.raises(StartupError, match=r"--admin-host .*--insecure"):
        check_exposure(Settings(router=RouterConfig(admin_host="0.0.0.0")), "router")


@pytest.mark.parametrize("role", ["router", "tokenizer", "worker"])
@pytest.mark.parametrize(
    ("address", "open_"), [("0.0.0.0:9", True), ("[::]:9", True), ("127.0.0.1:9", False), ("unix:/s", False)]
)
def test_a_port_between_services_needs_certificates(role: str, address: str, open_: bool, tmp_path: Path) -> None:
    settings = Settings(
        router=RouterConfig(deliver_address=address),
        tokenizer=TokenizerConfig(address=address),
        worker=WorkerConfig(admin_address=address),
    )
    check_exposure(settings.model_copy(update={"certs_dir": tmp_path}), role)
    check_exposure(settings.model_copy(update={"insecure": True}), role)
    if open_:
        with pytest.raises(StartupError, match=r"roadtrain certs DIR.*--insecure"):
            check_exposure(settings, role)
    else:
        check_exposure(settings, role)


def test_insecure_is_a_variable_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROADTRAIN_INSECURE", "1")
    assert load(["--host", "0.0.0.0"]).insecure


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = roadtrain(*arguments)
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(folder), timeout=60)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("router", "--host", "0.0.0.0"), "--insecure"),
        (("tokenizer", "--tokenizer.address", "0.0.0.0:0"), "roadtrain certs"),
        (("serve", "--port", "9", "--keys-file", "/nowhere/keys.yaml", "--host", "0.0.0.0"), "--behind-proxy"),
        (("keys", "{folder}/keys.yaml", "--id", "a b", "--tenant", "t"), "--id: "),
        (("keys", "{folder}/keys.yaml", "--id", "a", "--tenant", "t", "--weight", "0"), "--weight: "),
        (("certs", "/proc/nowhere"), "/proc/nowhere"),
    ],
)
def test_the_command_says_so_in_one_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = run(tmp_path, *(word.replace("{folder}", str(tmp_path)) for word in arguments))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("roadtrain")]
    assert says in line
    assert "Traceback" not in done.stderr


def test_the_second_key_of_one_id_is_refused_and_the_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("# ours\nkeys:\n")
    first = run(tmp_path, "keys", str(file), "--id", "a", "--tenant", "t", "--models", "x,y", "--requests-per-minute", "5")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("sk-rt-")
    assert len(first.stdout.strip()) == 49
    before = file.read_text()
    assert before.startswith("# ours\n")
    assert first.stdout.strip() not in before
    again = run(tmp_path, "keys", str(file), "--id", "a", "--tenant", "t")
    assert again.returncode == 1
    assert "keys.1.id is there twice" in again.stderr
    assert again.stdout == ""
    assert file.read_text() == before
