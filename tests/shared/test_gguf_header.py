"""The GGUF header reader: a real file, every kind of value, and files damaged in every way. No tensor is decoded."""

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.launcher.pull import find_or_fetch
from shared.errors import StartupError
from shared.gguf import Gguf, read_gguf
from tests.shared.gguf_writer import entry, string, write_gguf

SMALL = {
    "general.architecture": "llama",
    "n": 7,
    "minus": -7,
    "x": 0.5,
    "on": True,
    "words": ["a", "é", ""],
    "ids": [1, 2],
}
TENSORS = {"a.weight": ((2, 32), "Q8_0", b"q" * 68), "b.bias": ((3,), "F32", b"f" * 12)}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "small.gguf", SMALL, TENSORS)


def test_real_file() -> None:
    gguf = read_gguf(find_or_fetch("smollm2"))
    assert gguf.string("general.architecture") == "llama"
    assert gguf.integer("llama.context_length") == 8192
    assert len(gguf.strings("tokenizer.ggml.tokens")) == 49152
    embedding = gguf.tensors["token_embd.weight"]
    assert embedding.shape == (49152, 576)
    assert max(tensor.offset + tensor.num_bytes for tensor in gguf.tensors.values()) <= find_or_fetch("smollm2").stat().st_size


def test_written_values_come_back(small: Path) -> None:
    gguf = read_gguf(small)
    assert dict(gguf.metadata) == SMALL
    data = small.read_bytes()
    for name, (shape, type_name, packed) in TENSORS.items():
        tensor = gguf.tensors[name]
        assert (tensor.shape, tensor.type) == (shape, type_name)
        assert data[tensor.offset : tensor.offset + tensor.num_bytes] == packed


def test_accessors_name_the_key(small: Path) -> None:
    gguf = read_gguf(small)
    assert (gguf.integer("n"), gguf.number("x"), gguf.number("n"), gguf.flag("on")) == (7, 0.5, 7.0, True)
    assert (gguf.strings("words"), gguf.numbers("ids")) == (SMALL["words"], [1, 2])
    assert (gguf.integer("none", 3), gguf.string("none", "d"), gguf.flag("none", False)) == (3, "d", False)
    wrong = [
        (Gguf.integer, "on"),
        (Gguf.integer, "x"),
        (Gguf.string, "n"),
        (Gguf.flag, "n"),
        (Gguf.number, "words"),
        (Gguf.strings, "ids"),
        (Gguf.strings, "n"),
        (Gguf.numbers, "words"),
        (Gguf.string, "none"),
    ]
    for accessor, key in wrong:
        with pytest.raises(StartupError, match=f"small.gguf.*'{key}'"):
            accessor(gguf, key)


def test_every_truncation_is_an_error(small: Path) -> None:
    data = small.read_bytes()
    last = max(tensor.offset + tensor.num_bytes for tensor in read_gguf(small).tensors.values())
    for length in range(last):
        small.write_bytes(data[:length])
        with pytest.raises(StartupError, match=r"small\.gguf"):
            read_gguf(small)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_an_error_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path = write_gguf(tmp_path / "hurt.gguf", SMALL, TENSORS)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        gguf = read_gguf(path)
    except StartupError as error:
        message = str(error)
    else:
        message = ""
        for tensor in gguf.tensors.values():
            assert tensor.offset >= 0
            assert tensor.offset + tensor.num_bytes <= len(content)
    assert not message or "hurt.gguf" in message
    assert "\n" not in message


def _raw(keys: bytes = b"", num_keys: int = 0, tensors: bytes = b"", num_tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + keys + tensors + b"\0" * 256


def _tensor(name: str, dims: tuple[int, ...], number: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, number, offset)


FAULTS = {
    "empty": (b"", "not a GGUF"),
    "magic": (b"PK\3\4" + b"\0" * 60, "not a GGUF"),
    "version": (_raw(version=1), "version 1"),
    "big-endian": (_raw(version=3 << 24), "big-endian"),
    "many-keys": (_raw(num_keys=2**60), "claims 1152921504606846976 key-values"),
    "many-tensors": (_raw(num_tensors=2**63), "tensors, more than fit"),
    "same-key": (_raw((string("k") + entry(1)) * 2, 2), "'k' appears twice"),
    "long-string": (_raw(string("k") + struct.pack("<IQ", 8, 2**63), 1), "past the file's end"),
    "long-array": (_raw(string("k") + struct.pack("<IIQ", 9, 4, 2**62), 1), "numbers in 'k'"),
    "nested": (_raw(string("k") + struct.pack("<IIQ", 9, 9, 1), 1), "list of lists"),
    "value-type": (_raw(string("k") + struct.pack("<I", 13), 1), "unknown type 13"),
    "not-utf8": (_raw(struct.pack("<Q", 1) + b"\xff" + entry(1), 1), "not UTF-8"),
    "alignment": (_raw(string("general.alignment") + entry(0), 1), "alignment"),
    "alignment-text": (_raw(string("general.alignment") + entry("8"), 1), "alignment"),
    "tensor-type": (_raw(tensors=_tensor("t", (4,), 99, 0), num_tensors=1), "unknown type 99"),
    "dims": (_raw(tensors=_tensor("t", (1,) * 5, 0, 0), num_tensors=1), "5 dimensions"),
    "zero-dim": (_raw(tensors=_tensor("t", (4, 0), 0, 0), num_tensors=1), "cannot have rows"),
    "partial-block": (_raw(tensors=_tensor("t", (31,), 2, 0), num_tensors=1), "rows of 31"),
    "overflow": (_raw(tensors=_tensor("t", (2**32, 2**32), 0, 0), num_tensors=1), "impossible shape"),
    "unaligned": (_raw(tensors=_tensor("t", (4,), 0, 4), num_tensors=1), "multiple of the alignment"),
    "past-end": (_raw(tensors=_tensor("t", (4,), 0, 2**40), num_tensors=1), "truncated"),
    "overlap": (_raw(tensors=_tensor("t", (9,), 0, 0) + _tensor("u", (4,), 0, 32), num_tensors=2), "overlap"),
    "same-tensor": (_raw(tensors=_tensor("t", (4,), 0, 0) * 2, num_tensors=2), "'t' appears twice"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named(tmp_path: Path, name: str) -> None:
    content, fault = FAULTS[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(StartupError) as caught:
        read_gguf(path)
    assert "bad.gguf" in str(caught.value)
    assert fault in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"none.gguf: cannot be read: No such file"):
        read_gguf(tmp_path / "none.gguf")
