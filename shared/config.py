"""What an operator may choose: declared once here with its help, read from flags, environment, YAML file and default.

`load` is the only reader of the environment and of the command line. Everything it returns is frozen; measured facts
(block counts, addresses that were bound) never come back into it. It knows nothing of what the services do.
"""

import difflib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from shared.errors import StartupError

DEFAULT_MODEL = "smollm2"
ENV_PREFIX = "ROADTRAIN_"
CRASH_AT = ENV_PREFIX + "CRASH_AT"

Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RouterConfig(_Section):
    """The front door."""

    router_id: str = Field("", description="Name of this router, unique; empty: made from host name and process id.")
    host: str = Field("127.0.0.1", description="Address of the HTTP and gRPC ports.")
    keys_file: Path | None = Field(None, description="File of API keys, see `roadtrain keys`; unset: anyone on this machine.")
    tls_cert_file: Path | None = Field(None, description="Certificate (PEM, with its chain) of the HTTP and gRPC ports.")
    tls_key_file: Path | None = Field(None, description="Its private key (PEM).")
    behind_proxy: bool = Field(False, description="A proxy before the ports ends TLS, so that none is needed here.")
    port: Port = Field(8000, description="HTTP port; gRPC and admin take the next two unless set.")
    grpc_port: Port | None = Field(None, description="Public gRPC port.")
    admin_host: str = Field("127.0.0.1", description="Address of the admin port, which asks for no key.")
    admin_port: Port | None = Field(None, description="Port of health and metrics.")
    admin_socket: Path | None = Field(None, description="Serve the admin port on this unix socket instead.")
    deliver_address: str = Field("127.0.0.1:8003", description="Where workers dial this router: host:port or unix:/path.")
    tokenizer_addresses: tuple[str, ...] = Field(("127.0.0.1:8010",), description="Tokenizer replicas, host:port or unix:/path.")
    max_queued_requests: Positive = Field(4096, description="Refuse new requests when this many wait.")
    max_queued_tokens: Positive = Field(8_000_000, description="Refuse new requests when this many tokens wait.")
    max_tenant_requests: Positive = Field(2048, description="The same for one tenant.")
    max_tenant_tokens: Positive = Field(4_000_000, description="The same for one tenant's tokens.")
    default_deadline_s: Seconds = Field(600.0, description="Give up a request after this long, unless it says otherwise.")
    max_body_bytes: ByteSize = Field(ByteSize(4 * 2**20), description="Largest request body.")
    max_file_bytes: ByteSize = Field(ByteSize(100 * 2**20), description="Largest file for batches.")
    files_dir: Path | None = Field(
        None, description="Where files for batches are kept, shared by routers that run each other's batches; unset: the cache."
    )
    keep_alive_s: Seconds = Field(15.0, description="Send a comment on an idle event stream this often.")
    drain_grace_s: Seconds = Field(30.0, description="On SIGTERM wait this long for open streams.")
    strict: bool = Field(False, description="Refuse fields nobody knows instead of ignoring them.")
    tool_parser: Literal["hermes", "llama3_json", "mistral", "pythonic", "qwen3_xml", "deepseek"] | None = Field(
        None, description="How the model spells calls of tools; unset: what its chat template shows."
    )
    reasoning_parser: Literal["think", "none"] | None = Field(
        None, description="How the model marks reasoning, 'none' leaves it in the text; unset: what its chat template shows."
    )

    @property
    def ports(self) -> tuple[int, int, int]:
        """HTTP, gRPC and admin port; 0 asks the system for any."""
        following = [self.port and self.port + 1, self.port and self.port + 2]
        grpc_port = following[0] if self.grpc_port is None else self.grpc_port
        return self.port, grpc_port, following[1] if self.admin_port is None else self.admin_port


class TokenizerConfig(_Section):
    """Text to token ids and back."""

    address: str = Field("127.0.0.1:8010", description="Where it listens: host:port or unix:/path.")
    num_threads: Positive = Field(2, description="Threads for long inputs.")


class WorkerConfig(_Section):
    """The engine and its device."""

    worker_id: str = Field("", description="Name of this worker, stable over restarts; empty: made from the host name.")
    admin_address: str = Field("127.0.0.1:8020", description="Where health, status and administration listen.")
    runner: Literal["model", "sim"] = Field("model", description="'sim' computes no model: tokens are a hash of the request.")
    device: Literal["cpu"] = Field("cpu", description="What to compute on.")
    compute: Literal["fast", "exact"] = Field(
        "fast",
        description="Arithmetic of matrix products: 'fast' rounds activations to 8 or 16 bits, 'exact' keeps them in fp32.",
    )
    kv_dtype: Literal["float32", "float16", "int8"] | None = Field(
        None,
        description="Number format of the KV cache; unset: int8 if compute is fast, float32 if exact. "
        "int8, for fast alone, takes about half of what float16 does.",
    )
    kv_memory: ByteSize | None = Field(
        None, description="Memory for the KV cache; unset: a quarter of what is free, up to 4 GiB."
    )
    max_model_len: Positive | None = Field(None, description="Most tokens of prompt and output; unset: what the model allows.")
    max_num_seqs: Positive = Field(64, description="Most sequences computed in one step.")
    max_step_tokens: Positive = Field(512, description="Most tokens computed in one step.")
    num_threads: Positive | None = Field(None, description="Compute threads; unset: one per core.")
    drain_grace_s: Seconds = Field(30.0, description="On SIGTERM wait this long for running requests, then hand them over.")
    sim_vocab_size: Positive = Field(49152, description="sim: size of the vocabulary.")
    sim_num_blocks: Positive = Field(8192, description="sim: KV blocks.")
    sim_step_ms: Annotated[float, Field(ge=0)] = Field(5.0, description="sim: time of a step with one sequence.")
    sim_step_ms_per_seq: Annotated[float, Field(ge=0)] = Field(0.2, description="sim: added for each further sequence.")
    sim_prefill_tokens_per_s: Seconds = Field(20_000.0, description="sim: prompt tokens computed per second.")
    sim_poison_token: int | None = Field(None, description="sim: a prompt with this token id kills the process, as a bug would.")


class ServeConfig(_Section):
    """How many of each service `roadtrain serve` starts."""

    num_routers: Positive = Field(1, description="Router processes sharing the ports.")
    num_tokenizers: Positive = Field(1, description="Tokenizer processes.")
    num_workers: Positive = Field(1, description="Worker processes, each with a copy of the model.")


class Settings(BaseSettings):
    """Everything one installation is told; each process reads the sections it needs."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        nested_model_default_partial_update=True,
        protected_namespaces=(),
    )

    model: str = Field(
        DEFAULT_MODEL, description="Model to serve: 'smollm2', 'all-minilm', a Hugging Face id, a directory or a .gguf file."
    )
    model_path: Path | None = Field(None, description="Where its files are; unset: found or fetched from `model`.")
    served_names: tuple[str, ...] = Field((), description="Names clients may use, the first is shown; empty: the model's own.")
    redis_url: str | None = Field(
        None,
        description="redis://, rediss://, unix://, redis+sentinel://host,host/master or redis+cluster://host,host address; "
        "unset: a private server is started.",
    )
    queue_shards: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="Parts of the queue, which a Redis Cluster may keep on several servers; the same for all services."
    )
    redis_username: str | None = Field(None, description="User of Redis, see deploy/redis.acl.")
    redis_password_file: Path | None = Field(None, description="File with that user's password.")
    redis_ca_file: Path | None = Field(
        None, description="Authorities that a rediss:// server may be signed by; unset: the system's."
    )
    certs_dir: Path | None = Field(
        None, description="Folder of certificates for calls between services, see `roadtrain certs`; unset: in the clear."
    )
    secret_file: Path | None = Field(None, description="File with the queue's signing key, one or two lines; serve makes one.")
    insecure: bool = Field(False, description="Allow listening beyond this machine without keys and encryption.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity that is logged.")
    log_format: Literal["text", "json"] = Field("text", description="Shape of log lines.")
    router: RouterConfig = RouterConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    worker: WorkerConfig = WorkerConfig()
    serve: ServeConfig = ServeConfig()

    @property
    def names(self) -> tuple[str, ...]:
        """The names the model answers to, the shown one first, "default" last."""
        own = self.served_names or (model_name(self.model),)
        return tuple(dict.fromkeys((*own, "default")))


# Flags of nested settings that may be written without their section.
SHORTCUTS = {
    "router.host": "host",
    "router.port": "port",
    "router.grpc-port": "grpc-port",
    "router.admin-host": "admin-host",
    "router.admin-port": "admin-port",
    "router.keys-file": "keys-file",
    "router.tls-cert-file": "tls-cert-file",
    "router.tls-key-file": "tls-key-file",
    "router.behind-proxy": "behind-proxy",
    "router.strict": "strict",
    "router.tool-parser": "tool-parser",
    "router.reasoning-parser": "reasoning-parser",
    "worker.compute": "compute",
    "worker.kv-dtype": "kv-dtype",
    "worker.kv-memory": "kv-memory",
    "worker.max-model-len": "max-model-len",
    "worker.max-num-seqs": "max-num-seqs",
    "worker.max-step-tokens": "max-step-tokens",
    "worker.num-threads": "num-threads",
    "worker.runner": "runner",
    "serve.num-routers": "num-routers",
    "serve.num-tokenizers": "num-tokenizers",
    "serve.num-workers": "num-workers",
}


def model_name(model: str) -> str:
    """The name shown for a model: the last part of its id or path, without .gguf."""
    name = "SmolLM2-135M-Instruct" if model == DEFAULT_MODEL else Path(model).name
    return re.sub(r"\.gguf$", "", name)


def load(arguments: Sequence[str] = (), *, program: str = "roadtrain") -> Settings:
    """Settings from `arguments` (flags), then environment, then the file of --config, then defaults.

    Raises StartupError, one line, for a flag, variable or key that is unknown or wrong.
    """
    arguments, config_file = _take_config_flag(list(arguments))

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            command_line: CliSettingsSource[Any] = CliSettingsSource(
                settings_cls,
                cli_prog_name=program,
                cli_parse_args=list(arguments),
                cli_kebab_case=True,
                cli_implicit_flags=True,
                cli_exit_on_error=False,
                cli_avoid_json=True,
                cli_hide_none_type=True,
                cli_shortcuts=SHORTCUTS,
            )
            found: list[PydanticBaseSettingsSource] = [command_line, env_settings]
            if config_file:
                found.append(YamlConfigSettingsSource(settings_cls, yaml_file=config_file))
            return tuple(found)

    try:
        _check_environment()
        return Loaded()
    except SettingsError as error:
        raise StartupError(_explain_flags(str(error), arguments)) from None
    except ValidationError as error:
        raise StartupError("; ".join(_explain_value(detail) for detail in error.errors())) from None


def load_written(file: Path) -> Settings:
    """The settings that `serve` wrote into `file` for a process of its own: all of them, so that no other source is asked."""
    return Settings(**json.loads(file.read_bytes()))


def _take_config_flag(arguments: list[str]) -> tuple[list[str], Path | None]:
    """`arguments` without --config FILE, and the file; $ROADTRAIN_CONFIG if there is none."""
    name = os.environ.get(ENV_PREFIX + "CONFIG")
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag == "--config":
            end = index + (1 if equals else 2)
            if not equals and end > len(arguments):
                raise StartupError("--config needs a file name after it")
            name = value if equals else arguments[index + 1]
            arguments = arguments[:index] + arguments[end:]
            break
    if name and not Path(name).is_file():
        raise StartupError(f"no such configuration file: {name}")
    return arguments, Path(name) if name else None


def _flag_names() -> list[str]:
    names = [f"--{name.replace('_', '-')}" for name in Settings.model_fields] + [f"--{flag}" for flag in SHORTCUTS.values()]
    for section in ("router", "tokenizer", "worker", "serve"):
        fields = Settings.model_fields[section].default.__class__.model_fields
        names += [f"--{section}.{name.replace('_', '-')}" for name in fields]
    return [*names, "--config"]


def _explain_flags(message: str, arguments: Sequence[str]) -> str:
    unknown = re.search(r"unrecognized arguments: (\S+)", message)
    if unknown:
        flag = unknown[1].split("=")[0]
        close = difflib.get_close_matches(flag, _flag_names(), n=1)
        return f"unknown argument {flag}" + (f"; did you mean {close[0]}?" if close else "; --help lists them")
    return re.sub(r"^error parsing CLI: ", "", message).splitlines()[0]


def _explain_value(detail: Any) -> str:
    path = ".".join(str(part) for part in detail["loc"])
    where = f"{path} (flag --{path.replace('_', '-')}, variable {ENV_PREFIX}{path.upper().replace('.', '__')})"
    if detail["type"] == "extra_forbidden":
        names = [name[2:].replace("-", "_") for name in _flag_names()]
        close = difflib.get_close_matches(path, names, n=1)
        return f"unknown setting {path}" + (f"; did you mean {close[0]}?" if close else "")
    return f"setting {where}: {detail['msg'][0].lower()}{detail['msg'][1:]}, got {detail['input']!r}"


def _check_environment() -> None:
    """Refuses ROADTRAIN_* variables that no setting has: a misspelt one would silently do nothing."""
    known = {ENV_PREFIX + name[2:].upper().replace("-", "_").replace(".", "__") for name in _flag_names()}
    known |= {ENV_PREFIX + name for name in ("CONFIG", "CRASH_AT")}
    for name in os.environ:
        if name.startswith(ENV_PREFIX) and name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            raise StartupError(f"unknown environment variable {name}" + (f"; did you mean {close[0]}?" if close else ""))


def cache_dir() -> Path:
    """Where compiled kernels, repacked weights and the bundled model are kept; may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "roadtrain"


def crash_at() -> str:
    """Where this process shall die, for tests; see crash.py. Empty: nowhere."""
    return os.environ.get(CRASH_AT, "")


def hub_offline() -> bool:
    """Whether the operator forbids asking the Hugging Face Hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def client_key() -> str:
    """The API key of `roadtrain chat`, where OpenAI's clients look for theirs; empty: none."""
    return os.environ.get("OPENAI_API_KEY", "")


def search_path() -> str:
    """Where programs such as redis-server are looked for."""
    return os.environ.get("PATH", os.defpath)


def child_environment() -> dict[str, str]:
    """The environment for a service that `serve` starts: ours, without settings, since it is given a file of them.

    Compute threads sleep while they wait: spinning ones take the cores that the router and its clients need, and make
    a loaded machine many times slower. gRPC's own notes on connections that end are ours to make. Pydantic looks through
    everything installed for plugins that we do not have.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX) or name == CRASH_AT}
    return {"OMP_WAIT_POLICY": "passive", "GRPC_VERBOSITY": "ERROR", "PYDANTIC_DISABLE_PLUGINS": "__all__", **kept}
