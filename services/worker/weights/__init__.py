"""Reading checkpoints: open_checkpoint answers with the one kind of Checkpoint that lies at a path.

It knows nothing of decoders: which tensors exist is asked, never assumed.
"""

from pathlib import Path

from services.worker.weights.checkpoint import Checkpoint
from services.worker.weights.gguf import open_gguf
from services.worker.weights.safetensors import open_safetensors
from shared.errors import StartupError


def open_checkpoint(path: Path) -> Checkpoint:
    """A Hugging Face directory or a GGUF file; only headers are read. StartupError names the file and the fault."""
    if path.is_dir():
        return open_safetensors(path)
    if path.is_file():
        return open_gguf(path)
    raise StartupError(f"{path}: no such model file or directory; give a .gguf file or a Hugging Face directory")
