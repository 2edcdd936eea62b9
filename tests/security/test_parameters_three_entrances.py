"""SEC-20 to 27 and 32: the same bad requests over HTTP, over gRPC, and signed straight onto the queue: refused by name."""

import json
import math
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from shared import rpc
from shared.pb import router_pb2, router_pb2_grpc, tokenizer_pb2, types_pb2
from tests.security.cases import BAD, HTTP_NAMES, VOCAB, Bad
from tests.security.patient import SPEC, Patient, check_error
from tests.security.queue_door import Change, queue_door

PROMPT = [1, 2, 3]
FIT = SPEC.max_model_len


def finite(value: Any) -> bool:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return all(math.isfinite(each) for each in values if isinstance(each, int | float))


async def test_sec_26_over_http(patient: Patient) -> None:
    for bad in BAD:
        status, answer = await patient.post("/v1/completions", {"model": "default", "prompt": PROMPT, **bad.body()})
        error = check_error(answer)
        assert status == 400, (str(bad), answer)
        if not finite(bad.value):
            assert error["code"] == "invalid_json"
        else:
            assert (error["param"], error["type"]) == (HTTP_NAMES.get(bad.field, bad.field) + bad.at, "invalid_request_error"), (
                bad
            )
            assert bad.code in ("*", error["code"]), (str(bad), error)
        await patient.canary()


async def grpc_error(call: Any) -> tuple[str, str | None, str | None]:
    """Status, code and param of a call that fails and tells nothing about the server."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    trailing = dict(caught.value.trailing_metadata() or ())
    error = {"message": caught.value.details() or "", "type": "invalid_request_error"}
    code, param = trailing.get(rpc.ERROR_CODE_KEY), trailing.get(rpc.ERROR_PARAM_KEY)
    check_error(json.dumps({"error": error | {"code": code, "param": param}}).encode())
    return caught.value.code().name, code, param


def complete(token_ids: list[int], sampling: types_pb2.Sampling | None = None) -> router_pb2.CompleteRequest:
    packed = b"".join(token_id.to_bytes(4, "little") for token_id in token_ids)
    return router_pb2.CompleteRequest(model="default", token_ids=packed, options=router_pb2.Options(sampling=sampling))


async def test_sec_26_over_grpc(patient: Patient) -> None:
    async with rpc.connect(patient.stack.grpc_address) as channel:
        stub = router_pb2_grpc.RouterStub(channel)
        for bad in BAD:
            if (sampling := bad.sampling()) is None:
                continue
            status, code, param = await grpc_error(stub.Complete(complete(PROMPT, sampling)))
            assert (status, param) == ("INVALID_ARGUMENT", bad.field + bad.at), str(bad)
            assert bad.code in ("*", code), (str(bad), code)
            await patient.canary()


async def test_sec_26_onto_the_queue(patient: Patient) -> None:
    async with queue_door(patient.stack) as door:
        for bad in BAD:
            # Of what its context has room for the router alone knows: the worker ends such a request at its last token.
            if bad.sampling() is None or bad.code == "context_length_exceeded":
                continue
            error = await door.refused(bad.sampling(), PROMPT)
            assert (error.type, error.param) == ("invalid_request_error", bad.field + bad.at), str(bad)
            assert bad.code in ("*", error.code), str(bad)
            await patient.canary()
        assert door.num_refused > 40


PROMPTS: list[tuple[list[int], str]] = [
    ([], "*"),
    ([VOCAB], "invalid_token_id"),
    ([2**31 - 1, 1], "invalid_token_id"),
    ([2**32 - 1], "invalid_token_id"),
    ([5] * FIT, "context_length_exceeded"),
    ([5] * (FIT + 1), "context_length_exceeded"),
]


async def test_sec_20_prompts_over_three_entrances(patient: Patient) -> None:
    async with rpc.connect(patient.stack.grpc_address) as channel, queue_door(patient.stack) as door:
        stub = router_pb2_grpc.RouterStub(channel)
        for prompt, code in PROMPTS:
            status, answer = await patient.post("/v1/completions", {"model": "default", "prompt": prompt, "max_tokens": 1})
            assert (status, code in ("*", check_error(answer)["code"])) == (400, True), answer
            name, seen, _ = await grpc_error(stub.Complete(complete(prompt, types_pb2.Sampling(max_tokens=1))))
            assert (name, code in ("*", seen)) == ("INVALID_ARGUMENT", True), seen
            error = await door.refused(types_pb2.Sampling(max_tokens=1), prompt)
            assert error.param == "prompt"
            assert code in ("*", error.code)
            await patient.canary()


EMPTY_BODIES = [
    ("/v1/completions", {"prompt": value}) for value in ("", [], [[]], [""], [[1], []], None, [[[1]]], {}, 5, [1.5], [True], [-1])
] + [("/v1/chat/completions", {"messages": value}) for value in ([], None, "", {}, [[]], [{}], [None])]


async def test_sec_20_empty_prompts_are_refused(patient: Patient) -> None:
    for path, fields in EMPTY_BODIES:
        status, answer = await patient.post(path, {"model": "default", **fields})
        assert status == 400, (fields, answer)
        assert (check_error(answer)["param"] or "").startswith(next(iter(fields))), answer
    async with rpc.connect(patient.stack.grpc_address) as channel:
        stub = router_pb2_grpc.RouterStub(channel)
        for call in (
            stub.Complete(router_pb2.CompleteRequest(model="default")),
            stub.Complete(router_pb2.CompleteRequest(model="default", token_ids=b"abc")),
            stub.Chat(router_pb2.ChatRequest(model="default")),
            stub.Chat(router_pb2.ChatRequest(model="default", chat=tokenizer_pb2.Chat(messages=[tokenizer_pb2.ChatMessage()]))),
        ):
            assert (await grpc_error(call))[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("num_prompt", "num_new", "fits"), [(FIT - 1, 1, True), (FIT, 1, False), (FIT - 5, 5, True), (FIT - 5, 6, False)]
)
async def test_sec_20_the_context_is_exact(patient: Patient, num_prompt: int, num_new: int, fits: bool) -> None:
    body = {"model": "default", "prompt": [5] * num_prompt, "max_tokens": num_new, "ignore_eos": True}
    status, answer = await patient.post("/v1/completions", body)
    assert status == (200 if fits else 400), answer[:300]
    if not fits:
        error = check_error(answer)
        assert error["code"] == "context_length_exceeded"
        assert str(num_prompt) in (error["message"] or "")


async def test_sec_21_n_is_refused_at_once_and_costs_nothing(patient: Patient) -> None:
    for value in (10**9, 129, 0, -1, 1.5, True, "2", 2**64, [1], {}):
        status, answer = await patient.post("/v1/completions", {"model": "default", "prompt": PROMPT, "n": value})
        assert (status, check_error(answer)["param"]) == (400, "n"), answer


async def test_sec_24_no_number_that_is_none(patient: Patient) -> None:
    floats = [bad.field for bad in BAD if isinstance(bad.value, float) and math.isnan(bad.value)]
    for field in floats:
        for text in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999"):
            body = b'{"model":"default","prompt":"x","%s":%s}' % (field.encode(), text.encode())
            status, answer = await patient.post("/v1/completions", body)
            assert (status, check_error(answer)["code"]) == (400, "invalid_json")
    for field in ("temperature", "top_p", "min_p", "presence_penalty"):
        body = b'{"model":"default","prompt":"x","max_tokens":1,"%s":-0.0}' % field.encode()
        assert (await patient.post("/v1/completions", body))[0] == 200


async def test_sec_25_min_tokens_beyond_what_fits(patient: Patient) -> None:
    for value in (FIT, 2**31 - 1, 2**31, 2**63, 2**64):
        body = {"model": "default", "prompt": PROMPT, "max_tokens": None, "min_tokens": value}
        for path, fields in (("/v1/completions", {}), ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})):
            status, answer = await patient.post(path, body | fields)
            assert status == 400, answer
            check_error(answer)
            await patient.canary()


@pytest.mark.parametrize("salt", ["\x00", "a\nb", "x" * 129, "x" * 2**20, "\u202e", "\x7f", 5, ["a"]])
async def test_sec_27_odd_salts_are_refused(patient: Patient, salt: Any) -> None:
    status, answer = await patient.post("/v1/completions", {"model": "default", "prompt": PROMPT, "cache_salt": salt})
    assert (status, check_error(answer)["param"]) == (400, "cache_salt")


async def test_sec_27_printable_salts_are_hashed(patient: Patient) -> None:
    for salt in ("a", "😀" * 128, "' OR 1=1 --", "../../etc", "{x}"):
        body = {"model": "default", "prompt": PROMPT, "max_tokens": 1, "cache_salt": salt}
        assert (await patient.post("/v1/completions", body))[0] == 200


def test_every_sampling_field_has_a_bad_value() -> None:
    """A new field comes with what it must not be."""
    plain = {"ignore_eos", "include_stop_str_in_output", "skip_special_tokens"}
    # Grammars: tests/shared/test_grammars.py, tests/tokenizer/test_grammar_check.py. Spellings of bad words no caller sends.
    plain |= {"grammar", "bad_word_ids"}
    assert {field.name for field in types_pb2.Sampling.DESCRIPTOR.fields} - plain <= {bad.field for bad in BAD}


def test_cases_are_told_apart() -> None:
    names = [str(bad) for bad in BAD]
    assert all(isinstance(bad, Bad) for bad in BAD)
    assert len(set(names)) > len(names) - 5


def cut_prompt(payload: types_pb2.Payload) -> None:
    payload.prompt_token_ids = payload.prompt_token_ids[:-1]


STRANGE: dict[str, tuple[Change, str]] = {
    **{f"kind {kind}": (lambda payload, kind=kind: setattr(payload, "kind", kind), "kind") for kind in (0, 99, -1, 2**31 - 1)},
    "adapter": (lambda payload: setattr(payload, "lora", "../../x"), "lora"),
    "no seed": (lambda payload: payload.sampling.ClearField("seed"), "sampling"),
    "no most": (lambda payload: payload.sampling.ClearField("max_tokens"), "sampling"),
    "cut": (cut_prompt, "prompt"),
    "empty": (lambda payload: payload.ClearField("prompt_token_ids"), "prompt"),
}
SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "unsigned": lambda sealed: sealed[:1] + bytes(32) + sealed[33:],
    "first byte": lambda sealed: b"\x02" + sealed[1:],
    "last byte": lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1]),
    "signature": lambda sealed: sealed[:5] + bytes([sealed[5] ^ 1]) + sealed[6:],
    "cut": lambda sealed: sealed[:-3],
    "longer": lambda sealed: sealed + b"\x08\x01",
    "noise": lambda _: bytes(range(256)) * 4,
    "large": lambda _: bytes(2**20),
}


async def test_sec_26_payloads_that_no_router_writes(patient: Patient) -> None:
    """Signed with our key, as by another release; and without it. None is run, and the worker lives."""
    async with queue_door(patient.stack) as door:
        for name, (change, param) in STRANGE.items():
            error = await door.refused(types_pb2.Sampling(), PROMPT, change)
            assert (error.type, error.param) == ("invalid_request_error", param), name
            await patient.canary()
        before = (await patient.status()).num_bad_payloads
        for spoil in SPOILT.values():
            record = await door.ended(await door.put(types_pb2.Sampling(), PROMPT, spoil=spoil))
            assert (record.state, record.reason) == ("dead", "bad_payload")
            await patient.canary()
        assert (await patient.status()).num_bad_payloads - before >= len(SPOILT)
