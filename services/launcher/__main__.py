"""The `roadtrain` command: finds the command, reads its settings, turns every start-up failure into one line.

Exit codes: 0 done; 1 could not start or do it, the line says why; 2 wrong usage; 78 the same as 1, told to `serve`,
which then does not try again. It knows the commands, and nothing of how they do their work.
"""

import asyncio
import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from services.launcher.supervise import EXIT_CONFIG
from shared.config import Settings, load, load_written
from shared.errors import StartupError

USAGE = """\
roadtrain - serves large language models to thousands of users at once

  roadtrain serve [MODEL]    all services on this machine; MODEL is 'smollm2' (default), org/name, a directory or a .gguf file
  roadtrain chat [URL]       talk to a running server (default http://127.0.0.1:8000; a key is read from OPENAI_API_KEY)
  roadtrain pull [MODEL]     fetch a model and print where it is
  roadtrain bench NAME       measure: NAME is one of the programs in bench/, for example capacity
  roadtrain keys FILE        make an API key; `roadtrain keys --help` lists what it may be given
  roadtrain certs DIR        make certificates for calls between services
  roadtrain dead ls          requests put aside because they ended three processes; also show, retry, drop
  roadtrain version          print the version

  roadtrain router           one service alone, for a system of several machines;
  roadtrain tokenizer        they need --redis-url and --secret-file in common
  roadtrain worker

Every setting is a flag (--router.port 9000), a variable (ROADTRAIN_ROUTER__PORT=9000) or a line of a YAML file
(--config FILE). `roadtrain serve --help` lists them."""


ROLES = ("router", "tokenizer", "worker")
DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES)
DISK_CURE = "make room or set XDG_CACHE_HOME (models, kernels) and TMPDIR (sockets) to folders that can be written"


def main() -> None:
    """Entry point of the command."""
    arguments = sys.argv[1:]
    child = "--child" in arguments
    try:
        sys.exit(_run([argument for argument in arguments if argument != "--child"], child))
    except StartupError as error:
        print(f"roadtrain: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIG if child else 1)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"roadtrain: {error.filename or 'the disk'}: {error.strerror}; {DISK_CURE}", file=sys.stderr)
        sys.exit(EXIT_CONFIG if child else 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _run(arguments: Sequence[str], child: bool) -> int:
    command, *rest = arguments or ["help"]
    if command in ("help", "--help", "-h"):
        print(USAGE)
        return 0
    if command in ("version", "--version"):
        from importlib.metadata import version

        print(version("roadtrain"))
        return 0
    if command in ROLES:
        from services.launcher.roles import run_role

        # `serve` wrote all of them down: nothing else is asked.
        settings = load_written(Path(rest[1])) if child and rest[:1] == ["--config"] else _settings(command, rest)
        run_role(command, settings, child=child)
        return 0
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "serve": _serve,
        "pull": _pull,
        "chat": _chat,
        "bench": _bench,
        "dead": _dead,
        "keys": _keys,
        "certs": _certs,
    }
    if command not in commands:
        print(f"roadtrain: no command {command!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    return commands[command](rest)


def _settings(command: str, arguments: Sequence[str]) -> Settings:
    """Settings of a command whose first argument may be the model."""
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--model", *arguments]
    return load(arguments, program=f"roadtrain {command}")


def _serve(arguments: Sequence[str]) -> int:
    from services.launcher.serve import serve
    from shared.logs import configure_logging

    settings = _settings("serve", arguments)
    configure_logging("serve", settings.log_level, settings.log_format)
    return asyncio.run(serve(settings))


def _pull(arguments: Sequence[str]) -> int:
    from services.launcher.pull import find_or_fetch

    print(find_or_fetch(_settings("pull", arguments).model))
    return 0


def _chat(arguments: Sequence[str]) -> int:
    from services.launcher.chat import chat

    return chat(arguments[0] if arguments else "http://127.0.0.1:8000")


def _dead(arguments: Sequence[str]) -> int:
    from services.launcher.dead import dead

    return dead(arguments)


def _keys(arguments: Sequence[str]) -> int:
    from services.launcher.keys import keys

    return keys(arguments)


def _certs(arguments: Sequence[str]) -> int:
    from services.launcher.certs import certs

    return certs(arguments)


def _bench(arguments: Sequence[str]) -> int:
    """Runs a program of bench/, which measures the rest from outside; services never import it."""
    import runpy

    folder = Path(__file__).resolve().parents[2] / "bench"
    names = sorted(path.stem for path in folder.glob("*.py") if "def main()" in path.read_text())
    if not arguments or arguments[0] not in names:
        print(f"roadtrain bench: give one of {', '.join(names)}", file=sys.stderr)
        return 2
    sys.argv = [f"roadtrain bench {arguments[0]}", *arguments[1:]]
    runpy.run_module(f"bench.{arguments[0]}", run_name="__main__")
    return 0


if __name__ == "__main__":
    main()
