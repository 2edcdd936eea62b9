"""SEC-34: model files whose headers lie end in one line that names them, soon and in little memory."""

import json
import resource
import struct
import time
from pathlib import Path

import pytest

from services.worker.weights import open_checkpoint
from shared.errors import StartupError
from tests.fuzz.seeds import gguf_seeds, header, tensor

HUGE = 2**63 - 1
SAFETENSORS = {
    "empty": b"",
    "no header": bytes(8),
    "half a length": b"\x10\x00\x00",
    "header past the end": header({}, b"", 10**6),
    "header of 2^63": header({}, b"", 2**63),
    "header of 2^64-1": header({}, b"", 2**64 - 1),
    "no JSON": header(b"x" * 40),
    "deep JSON": header(b"[" * 200_000),
    "a list": header([]),
    "data past the end": header({"a": tensor(0, 10**9, [250_000_000])}),
    "data at 2^62": header({"a": tensor(2**62, 2**62 + 64, [16])}),
    "end before begin": header({"a": tensor(64, 0, [16])}),
    "negative": header({"a": tensor(-64, 0, [16])}),
    "overlapping": header({"a": tensor(0, 48, [12]), "b": tensor(32, 64, [8])}),
    "a hole": header({"a": tensor(0, 16, [4]), "b": tensor(48, 64, [4])}),
    "shape too large": header({"a": tensor(0, 64, [2**40, 2**40])}),
    "shape overflows": header({"a": tensor(0, 64, [HUGE, HUGE])}),
    "shape overflows to its size": header({"a": tensor(0, 64, [2**32, 2**32, 16])}),
    "negative shape": header({"a": tensor(0, 64, [-4, -4])}),
    "shape of text": header({"a": {"dtype": "F32", "shape": ["4"], "data_offsets": [0, 16]}}),
    "unknown type": header({"a": tensor(0, 64, [16], "F33")}),
    "fractions": header({"a": {"dtype": "F32", "shape": [4.5], "data_offsets": [0.0, 18.0]}}),
    "no offsets": header({"a": {"dtype": "F32", "shape": [16]}}),
    "three offsets": header({"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 32, 64]}}),
    "size unlike shape": header({"a": tensor(0, 64, [15])}),
    "more data than told": header({"a": tensor(0, 64, [16])}, bytes(100)),
    "twice": header(
        b'{"a":' + json.dumps(tensor(0, 32, [8])).encode() + b',"a":' + json.dumps(tensor(32, 64, [8])).encode() + b"}"
    ),
}


def fault(path: Path) -> str:
    """The one line that opening it ends with; soon, and without much memory."""
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(StartupError) as caught:
        open_checkpoint(path)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    assert len(line) < 1000
    assert time.thread_time() - begin < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
    return line


@pytest.mark.parametrize("name", SAFETENSORS)
def test_sec_34_a_safetensors_header_that_lies(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model.safetensors").write_bytes(SAFETENSORS[name])
    assert "safetensors" in fault(tmp_path)


CONFIGS = {
    "deep": b"[" * 200_000,
    "no JSON": b"{",
    "not UTF-8": b'{"a": "\xff"}',
    "a list": b"[]",
    "end of text is text": b'{"eos_token_id": "</s>"}',
}


@pytest.mark.parametrize("name", CONFIGS)
def test_sec_34_a_config_that_is_none(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIGS[name])
    (tmp_path / "model.safetensors").write_bytes(header({"a": tensor(0, 64, [16])}))
    fault(tmp_path)


def test_sec_34_a_gguf_file_cut_off_anywhere(tmp_path: Path) -> None:
    whole, path = gguf_seeds()[0], tmp_path / "model.gguf"
    for length in range(0, len(whole) - 5000, 7):
        path.write_bytes(whole[:length])
        fault(path)


@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])
def test_sec_34_a_gguf_file_with_any_length_changed(value: int, tmp_path: Path) -> None:
    """Every eight bytes of the header, wherever they may be a length or an offset."""
    whole, path = gguf_seeds()[0], tmp_path / "model.gguf"
    end = len(whole) - 4096 - 4 * 34
    lines = []
    for at in range(8, end, 5):
        path.write_bytes(whole[:at] + struct.pack("<Q", value) + whole[at + 8 :])
        try:
            checkpoint = open_checkpoint(path)
        except StartupError as error:
            lines.append(str(error))
        else:
            for entry in checkpoint.entries.values():
                assert 0 <= entry.num_bytes <= len(whole)
    assert lines
    assert not [line for line in lines if "\n" in line or str(path) not in line]
