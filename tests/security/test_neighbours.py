"""SEC-03, 28, 60 to 63, 66: what one caller does reaches no other caller's cache, batch, blocks or stream."""

import asyncio
import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from services.router.auth import Identity
from services.router.generate import _salt
from services.worker.engine.blocks import BlockPool
from services.worker.models import Model, build
from services.worker.runtime import runner as runner_module
from shared import rpc
from shared.errors import NotFound
from shared.pb import delivery_pb2, delivery_pb2_grpc, types_pb2
from shared.prefix import block_keys
from shared.sampling import SamplingParams
from tests.router.plane.rig import ask, plane_of, rig
from tests.security.patient import Patient
from tests.security.queue_door import queue_door
from tests.security.test_code_execution import ops
from tests.worker.models import tiny
from tests.worker.runtime.engine_run import EngineRun
from tests.worker.service.router_double import until


async def test_sec_03_peers_that_say_nothing_or_never_read_hold_up_nobody(patient: Patient) -> None:
    (deliver,) = patient.stack.sockets("deliver")
    hello = delivery_pb2.FromWorker(hello=delivery_pb2.Hello(version=1, worker_id="stranger", boot_id="x", fingerprint="f"))
    async with rpc.connect(f"unix:{deliver}") as channel:
        stub = delivery_pb2_grpc.DeliveryStub(channel)
        silent = [stub.Deliver() for _ in range(30)]
        deaf = [stub.Deliver() for _ in range(30)]
        for call in deaf:
            await call.write(hello)
        followers = [stub.Follow(delivery_pb2.FollowRequest(rid="00" + "ab" * 16)) for _ in range(10)]
        for _ in range(5):
            await patient.canary()
        # A stranger is told of nothing that it does not hold.
        for call in followers:
            assert await call.code() is not None
            assert (await call.code()).name != "OK"
        for call in (*silent, *deaf):
            call.cancel()


def test_sec_60_keys_of_blocks_are_of_the_tenant_and_all_before() -> None:
    tokens = list(range(64))
    tenants = ["a", "b", "", "a\x00b", "ab"]
    roots = [_salt(tenant, salt) for tenant in tenants for salt in ("", "a", "b", "\x00")]
    assert len(set(roots)) == len(roots)
    keys = [block_keys(root, tokens, 16) for root in roots]
    assert len({key for each in keys for key in each}) == 4 * len(roots)
    assert all(len(key) == 32 for each in keys for key in each)
    assert _salt("ab", "c") != _salt("a", "bc")


def test_sec_60_a_collision_of_keys_shares_nothing() -> None:
    pool = BlockPool(8, 4)
    for tokens in ([1, 2, 3, 4], [5, 6, 7, 8]):
        block = pool.allocate()
        pool.publish(block, b"one key for all", tokens)
    assert pool.find([b"one key for all"], [1, 2, 3, 4]) == [0]
    assert pool.find([b"one key for all"], [5, 6, 7, 8]) == []


async def test_sec_61_a_tenant_never_hits_another_s_blocks(patient: Patient) -> None:
    prompt = random.Random(61).sample(range(100, 40_000), 200)
    async with queue_door(patient.stack) as door:

        async def num_cached(tenant: str, salt: str) -> int:
            def salted(payload: types_pb2.Payload) -> None:
                payload.cache_salt = _salt(tenant, salt)

            before = (await patient.status()).num_tokens_cached
            owed = await door.put(types_pb2.Sampling(max_tokens=1), prompt, salted)
            await until(lambda: owed.whole, owed, 30)
            await door.ended(owed)
            return (await patient.status()).num_tokens_cached - before

        assert await num_cached("victim", "") == 0
        assert await num_cached("victim", "") >= 192
        for tenant, salt in (("attacker", ""), ("attacker", "victim"), ("", "victim"), ("victim", "x"), ("victi", "m")):
            assert await num_cached(tenant, salt) == 0, (tenant, salt)
        assert await num_cached("victim", "") >= 192


async def test_sec_61_salts_part_the_cache_of_one_tenant(patient: Patient) -> None:
    prompt = random.Random(62).sample(range(100, 40_000), 200)

    async def num_cached(salt: str | None) -> int:
        body = {"model": "default", "prompt": prompt, "max_tokens": 1, "cache_salt": salt}
        usage: dict[str, Any] = (await patient.http.post("/v1/completions", json=body)).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert [await num_cached(salt) for salt in ("a", "b", None)] == [0, 0, 0]
    assert min([await num_cached(salt) for salt in ("a", "b", None)]) >= 192


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("neighbours")
    tiny.save(tiny.random_model("llama"), folder)
    return build(folder, ops(), compute="fast")


# One way to set each thing that a request may ask for.
FEATURES: dict[str, Any] = {
    "temperature": 1.3,
    "top_p": 0.8,
    "top_k": 7,
    "min_p": 0.05,
    "presence_penalty": 1.5,
    "frequency_penalty": -1.5,
    "repetition_penalty": 1.7,
    "logit_bias": ((3, 50.0), (9, -100.0)),
    "min_tokens": 5,
    "stop_token_ids": (11, 12),
    "ignore_eos": True,
    "n": 3,
    "num_logprobs": 4,
    "num_prompt_logprobs": 2,
}


def pairs() -> Iterator[SamplingParams]:
    """Every two features together."""
    for number, two in enumerate(itertools.combinations(FEATURES, 2)):
        yield replace(SamplingParams(seed=number, max_tokens=6, temperature=0.0), **{name: FEATURES[name] for name in two})


def test_sec_28_every_two_features_together(model: Model) -> None:
    assert set(FEATURES) | {"seed", "max_tokens", "stop", "include_stop_str_in_output", "skip_special_tokens"} == {
        name for name in SamplingParams.__dataclass_fields__ if name not in LATER
    }
    works = [(str(number), [3 + number % 50, 4, 5, 6], params) for number, params in enumerate(pairs())]
    assert len(works) == 91
    with EngineRun(model) as engine:
        engine.run(works)
        together = {key: list(tokens) for key, tokens in engine.tokens.items()}
        for name, prompt, params in random.Random(28).sample(works, 12):
            engine.run([(f"alone {name}", prompt, params)])
            for choice in range(params.n):
                assert engine.tokens[f"alone {name}", choice] == together[name, choice], params


# Sampling parameters of other rooms: each has tests of its own, where it is read.
LATER = {"grammar", "allowed_token_ids", "bad_words", "bad_word_ids"}


def random_params(rng: random.Random) -> SamplingParams:
    names = rng.sample(list(FEATURES), rng.randint(0, 7))
    return replace(
        SamplingParams(seed=rng.getrandbits(60), max_tokens=rng.randint(10, 40), temperature=rng.choice((0.0, 0.7))),
        **{name: FEATURES[name] for name in names if name != "min_tokens"},
    )


@pytest.mark.parametrize("seed", range(2))
def test_sec_62_a_batch_gives_what_each_gets_alone(model: Model, seed: int) -> None:
    """Random mixes, and so few blocks that somebody is preempted."""
    rng = random.Random(seed)

    def prompt(length: int) -> list[int]:
        return [rng.randrange(3, model.spec.vocab_size) for _ in range(length)]

    # Two that together need more than there is, so that one of them must make room.
    large = SamplingParams(seed=seed, max_tokens=40, ignore_eos=True)
    works = [("large", prompt(53), large), ("larger", prompt(53), large)]
    works += [(str(number), prompt(rng.randint(1, 40)), random_params(rng)) for number in range(12)]
    with EngineRun(model, num_blocks=10, max_num_seqs=9, max_step_tokens=37) as crowded:
        crowded.run(works)
        preemptions = crowded.stats().preemptions
    assert preemptions > 0
    with EngineRun(model) as roomy:
        for name, prompt, params in works:
            roomy.run([(name, prompt, params)])
    assert crowded.tokens == roomy.tokens


@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "int8"])
def test_sec_63_what_was_left_in_freed_blocks_is_never_read(model: Model, kv_dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole cache is filled with what would show anywhere: not-a-number, or bytes of ones."""
    works = [(str(number), list(range(3, 10 + 7 * number)), SamplingParams(seed=number, max_tokens=12)) for number in range(6)]

    def tokens() -> dict[tuple[str, int], list[int]]:
        with EngineRun(model, num_blocks=40, kv_dtype=kv_dtype) as engine:
            engine.run(works)
            return engine.tokens

    clean = tokens()
    allocate = runner_module.allocate

    def poisoned(*args: Any) -> Any:
        caches = allocate(*args)
        for tensor in itertools.chain.from_iterable(caches):
            tensor.fill_(torch.nan if tensor.is_floating_point() else -1)
        return caches

    monkeypatch.setattr(runner_module, "allocate", poisoned)
    assert tokens() == clean


async def test_sec_66_another_tenant_s_stream_is_like_one_that_never_was() -> None:
    async with rig() as made, plane_of(made) as plane:
        generation = await plane.generator.start(ask(sampling=SamplingParams(seed=1, max_tokens=1000)))
        said = set()
        for rid, tenant in ((generation.rid, "other"), (generation.rid, ""), ("00" + "ef" * 16, "t"), ("..", "t"), ("", "t")):
            with pytest.raises(NotFound) as caught:
                await plane.generator.resume(rid, "", Identity(tenant))
            said.add((caught.value.message.replace(rid, "RID") if rid else caught.value.message, caught.value.code))
            with pytest.raises(NotFound) as refused:
                await plane.generator.cancel(rid, tenant)
            assert generation.rid[:64] not in refused.value.message or rid == generation.rid
        assert len(said) == 1
        assert not generation.over
        assert await generation.cancel("client")


async def test_sec_66_and_over_http(patient: Patient) -> None:
    answers = set()
    for rid in ("00" + "ef" * 16, "..", "x", "00" + "EF" * 16, "%00"):
        answer = await patient.http.get(f"/v1/streams/{rid}")
        answers.add((answer.status_code, answer.json()["error"]["code"]))
    assert all(status == 404 for status, _ in answers), answers
    await asyncio.sleep(0)
