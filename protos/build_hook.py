"""Lets `pip install` generate shared/pb; hatchling calls it for wheels and for editable installs. It knows only generate.py."""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtoBuildHook(BuildHookInterface):
    """Generates before files are collected."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Writes shared/pb into the tree that is being built."""
        generate = runpy.run_path(str(Path(self.root) / "protos" / "generate.py"))["generate"]
        generate(Path(self.root))
