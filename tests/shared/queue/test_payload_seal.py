"""Payloads are signed and versioned; rids have one form; secret files are read strictly."""

from pathlib import Path

import pytest

from shared.errors import StartupError
from shared.pb import types_pb2
from shared.queue.keys import new_key, read_keys
from shared.queue.payload import BadPayload, digest, open_sealed, seal
from shared.queue.rid import is_rid, new_rid, rid_for_key, shard_of

OLD, NEW, FOREIGN = b"o" * 32, b"n" * 32, b"f" * 32
RID = new_rid()


def payload() -> types_pb2.Payload:
    message = types_pb2.Payload(kind=types_pb2.KIND_GENERATE, prompt_token_ids=b"\1\0\0\0", cache_salt=b"salt")
    message.sampling.seed = 7
    message.sampling.logit_bias[3] = 1.5
    message.sampling.logit_bias[1] = -1.5
    return message


def test_what_was_sealed_opens_with_either_key_of_a_rotation() -> None:
    sealed = seal(payload(), RID, [OLD])
    opened = open_sealed(sealed, RID, [NEW, OLD])
    assert opened.version == 1
    opened.ClearField("version")
    assert opened == payload()


@pytest.mark.parametrize("position", [1, 20, 33, -1])
def test_a_changed_byte_is_noticed(position: int) -> None:
    sealed = bytearray(seal(payload(), RID, [OLD]))
    sealed[position] ^= 1
    with pytest.raises(BadPayload, match="not signed with our key"):
        open_sealed(bytes(sealed), RID, [OLD])


def test_neither_a_foreign_key_nor_another_requests_payload_is_accepted() -> None:
    with pytest.raises(BadPayload, match="same secret file"):
        open_sealed(seal(payload(), RID, [FOREIGN]), RID, [OLD, NEW])
    with pytest.raises(BadPayload, match="not signed"):
        open_sealed(seal(payload(), RID, [OLD]), new_rid(), [OLD])


@pytest.mark.parametrize("sealed", [b"", b"\1", b"\1" + bytes(32), b"\2" + bytes(100)])
def test_what_has_no_known_format_is_refused(sealed: bytes) -> None:
    with pytest.raises(BadPayload, match="unknown format"):
        open_sealed(sealed, RID, [OLD])


def test_the_digest_is_of_what_was_asked_and_not_of_its_trace() -> None:
    traced, other = payload(), payload()
    traced.trace.traceparent = "00-aa-bb-01"
    other.sampling.seed = 8
    assert digest(traced) == digest(payload()) != digest(other)


def test_rids_have_one_form_and_name_their_shard() -> None:
    assert {shard_of(new_rid(2)) for _ in range(100)} == {0, 1}
    keyed = [rid_for_key(OLD, "tenant", str(number), 256) for number in range(2000)]
    assert keyed == [rid_for_key(OLD, "tenant", str(number), 256) for number in range(2000)]
    assert all(map(is_rid, keyed))
    assert max(map(shard_of, keyed)) == 255
    assert rid_for_key(OLD, "ab", "c") != rid_for_key(OLD, "a", "bc") != rid_for_key(NEW, "a", "bc")
    assert not any(map(is_rid, ("", RID[:-1], RID + "0", RID.upper() + "\n", "x" * 34)))
    with pytest.raises(ValueError, match="257"):
        new_rid(257)


def test_a_secret_file_holds_one_or_two_long_keys(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    for text, message in (("", "0 keys"), ("short\n", "under 32"), (f"{new_key()}\n" * 3, "3 keys")):
        path.write_text(text)
        with pytest.raises(StartupError, match=message):
            read_keys(path)
    keys = [new_key(), new_key()]
    path.write_text("\n".join(keys) + "\n\n")
    assert read_keys(path) == tuple(key.encode() for key in keys)
    with pytest.raises(StartupError, match="cannot read"):
        read_keys(tmp_path / "none")
