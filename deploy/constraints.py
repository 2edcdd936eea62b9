"""Pins every package Roadtrain installs, and checks that binary wheels of those pins exist for each CPython.

    python deploy/constraints.py write    resolve anew for every CPython and write constraints.txt
    python deploy/constraints.py check    resolve constraints.txt for every CPython; fail if one has no binary wheels

Asks pip's resolver (nothing is installed), so it needs a package index. Linux on x86-64. It knows nothing of what
the packages are for.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
EXTRAS = "dev,redis"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)] + ["manylinux2014_x86_64", "manylinux1_x86_64"]


def resolve(python: str, constraints: Path | None) -> dict[str, str]:
    """Name and version of all that `pip install roadtrain[dev,redis]` takes on this CPython, from binary wheels alone."""
    requirements = _requirements()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--only-binary=:all:"]
        command += ["--python-version", python, "--implementation", "cp", "--abi", f"cp{python.replace('.', '')}"]
        command += ["--abi", "abi3", "--abi", "none"]
        command += [part for platform in PLATFORMS for part in ("--platform", platform)]
        command += ["--target", scratch, "--report", str(report)]
        command += ["--constraint", str(constraints)] if constraints else []
        done = subprocess.run([*command, *requirements(python)], capture_output=True, text=True, timeout=900)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise SystemExit(f"CPython {python}: " + "\n".join(errors))
        installs = json.loads(report.read_text())["install"]
    return {entry["metadata"]["name"].lower().replace("_", "-"): entry["metadata"]["version"].split("+")[0] for entry in installs}


def _requirements():
    """What pyproject.toml asks for, self-references resolved; markers on the Python version are pip's business."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def expand(names: str) -> list[str]:
        found = []
        for name in names.split(","):
            for requirement in extras[name]:
                inner = requirement.removeprefix("roadtrain[").removesuffix("]")
                found += expand(inner) if requirement.startswith("roadtrain[") else [requirement]
        return found

    wanted = project["dependencies"] + expand(EXTRAS)

    def for_python(python: str) -> list[str]:
        from pip._vendor.packaging.requirements import Requirement

        parsed = [Requirement(text) for text in wanted]
        environment = {"python_version": python, "python_full_version": f"{python}.0"}
        return [f"{r.name}{_extras(r)}{r.specifier}" for r in parsed if not r.marker or r.marker.evaluate(environment)]

    return for_python


def _extras(requirement) -> str:
    return f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""


def write() -> None:
    """Resolves the newest for the oldest CPython, then holds the others to it where they can be."""
    found: dict[str, dict[str, str]] = {python: resolve(python, None) for python in PYTHONS}
    lines = ["# Every version Roadtrain is tested with. Made by: python deploy/constraints.py write"]
    for name in sorted(set().union(*found.values())):
        versions = {python: found[python][name] for python in PYTHONS if name in found[python]}
        if len(set(versions.values())) == 1:
            lines.append(f"{name}=={next(iter(versions.values()))}")
        else:
            lines += [f'{name}=={version}; python_version == "{python}"' for python, version in versions.items()]
    CONSTRAINTS.write_text("\n".join(lines) + "\n")
    print(f"wrote {len(lines) - 1} pins to {CONSTRAINTS.name}")


def check() -> None:
    """Resolves what constraints.txt pins for every CPython."""
    for python in PYTHONS:
        print(f"CPython {python}: {len(resolve(python, CONSTRAINTS))} packages, all binary wheels")


if __name__ == "__main__":
    if sys.argv[1:] not in (["write"], ["check"]):
        raise SystemExit(__doc__)
    {"write": write, "check": check}[sys.argv[1]]()
