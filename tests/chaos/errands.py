"""Errands of clients that do not wait: a batch, and responses in the background, whose every token is known beforehand.

They are begun and fetched at any router that answers, as often as it takes, and judged when they have ended: each line and
each response once, whole and token-exact. It knows nothing of faults.
"""

import asyncio
import json
import random
from typing import Any

import httpx

from services.router.auth import ANONYMOUS as TENANT
from services.worker.sim import SimSpec, expected_tokens
from shared.queue.keys import read_keys
from shared.queue.rid import rid_for_key
from shared.sampling import SamplingParams
from tests.chaos import coroner
from tests.chaos.checkers import Verdict, Vocabulary
from tests.chaos.cluster import Cluster
from tests.chaos.history import Quarantined

ENDED = ("completed", "failed", "cancelled", "expired", "incomplete")
ASK_S, LOOK_S, PATIENCE_S = 10.0, 0.5, 240.0
NUM_TOKENS = 400  # of each response


def body_of(index: int) -> dict[str, Any]:
    """What line `index` asks: 40 to 440 tokens."""
    prompt = [(index * 977 + at * 31) % 40_000 + 2 for at in range(12)]
    return {"model": "default", "prompt": prompt, "max_tokens": 40 + 131 * index % 401, "seed": index, "ignore_eos": True}


class Errands:
    """One batch of `num_lines`, and as many responses as `respond` is told to begin; what they came to is added to `verdict`."""

    def __init__(self, cluster: Cluster, spec: SimSpec, vocabulary: Vocabulary, verdict: Verdict, num_lines: int):
        self._cluster = cluster
        self._spec = spec
        self._vocabulary = vocabulary
        self._verdict = verdict
        self._num_lines = num_lines
        self._rng = random.Random(num_lines)
        self._http = httpx.AsyncClient(timeout=ASK_S)
        self._batch_id = ""
        self._texts: dict[int, str] = {}
        self._begun: dict[str, int] = {}

    async def close(self) -> None:
        """Ends all connections."""
        await self._http.aclose()

    async def begin(self, seeds: int) -> None:
        """In peace: learns what each of so many responses must say, and begins the batch."""
        asked = [self._ask("POST", "/v1/responses", json=_response_of(seed)) for seed in range(seeds)]
        for seed, answer in enumerate(await asyncio.gather(*asked)):
            self._texts[seed] = text_of(answer.json())
        lines = [
            {"custom_id": f"line-{index}", "method": "POST", "url": "/v1/completions", "body": body_of(index)}
            for index in range(self._num_lines)
        ]
        data = "\n".join(json.dumps(line) for line in lines).encode()
        file = await self._ask("POST", "/v1/files", files={"file": ("lines.jsonl", data)}, data={"purpose": "batch"})
        asked_for = {"input_file_id": file.json()["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        self._batch_id = (await self._ask("POST", "/v1/batches", json=asked_for)).json()["id"]

    async def respond(self, num: int, every_s: float) -> None:
        """Begins so many responses in the background, one after the other, under a key each so that none is begun twice."""
        for number in range(num):
            seed = number % len(self._texts)
            body = {**_response_of(seed), "background": True}
            answer = await self._ask("POST", "/v1/responses", json=body, headers={"Idempotency-Key": f"errand-{number}"})
            self._begun[answer.json()["id"]] = seed
            await asyncio.sleep(every_s)

    async def judge(self) -> None:
        """Waits for the ends, and compares."""
        for response_id, seed in self._begun.items():
            await self._response(response_id, await self._ended(f"/v1/responses/{response_id}"), seed)
        batch = await self._ended(f"/v1/batches/{self._batch_id}")
        self._verdict.asked += len(self._begun) + self._num_lines
        if batch["status"] != "completed":
            self._verdict.findings.append(f"N3 {self._batch_id}: {batch}")
        failed = await self._rows(batch.get("error_file_id"))
        for row in failed:
            await self._failed(row)
        self._answered(await self._rows(batch.get("output_file_id")), {row["custom_id"] for row in failed})

    async def _response(self, response_id: str, response: dict[str, Any], seed: int) -> None:
        used = response["usage"]["output_tokens"] if response.get("usage") else 0
        if "will not be run again" in str(response.get("error")):
            await self._suspend(seed, response_id.removeprefix("resp_"), f"{response_id}: {response['error']}")
        elif text_of(response) != self._texts[seed] or used != NUM_TOKENS:
            self._verdict.lost += 1
            told = f"{response['status']} {response.get('error')}, {used} tokens"
            self._verdict.findings.append(f"N2 {response_id}: {told}, and not the text of seed {seed}")

    async def _failed(self, row: dict[str, Any]) -> None:
        """A line that was answered with an error."""
        error = row["response"]["body"]["error"] if row["response"] else row["error"]
        if error["code"] == "request_quarantined":
            index = int(row["custom_id"].removeprefix("line-"))
            key = read_keys(self._cluster.folder / "secret")[0]
            rid = rid_for_key(key, TENANT, f"{self._batch_id}/{index + 1}")
            await self._suspend(index, rid, f"{self._batch_id}: {row}")
        else:
            self._verdict.lost += 1
            self._verdict.findings.append(f"N3 {self._batch_id}: {row}")

    async def _suspend(self, number: int, rid: str, story: str) -> None:
        record = await coroner.record_of(self._cluster, rid)
        self._verdict.suspended.append(Quarantined(number, rid, record, story))

    def _answered(self, rows: list[dict[str, Any]], failed: set[str]) -> None:
        got = [row["custom_id"] for row in rows]
        whole = [name for name in (f"line-{index}" for index in range(self._num_lines)) if name not in failed]
        if got != whole:
            missing = sorted(set(whole) - set(got))
            self._verdict.lost += len(missing)
            self._verdict.duplicated += len(got) - len(set(got))
            self._verdict.findings.append(f"N1 {self._batch_id}: {len(got)} rows, without {missing}")
        for row in rows:
            index, answer = int(row["custom_id"].removeprefix("line-")), row["response"]["body"]
            body = body_of(index)
            params = SamplingParams(seed=index, max_tokens=body["max_tokens"], ignore_eos=True)
            ids, _ = expected_tokens(self._spec, body["prompt"], params)
            self._verdict.tokens += len(ids)
            if answer["choices"][0]["text"] != self._vocabulary.text(ids) or answer["usage"]["completion_tokens"] != len(ids):
                self._verdict.unexpected += 1
                self._verdict.findings.append(f"N2 {self._batch_id}: {row['custom_id']} is not what it must be")

    async def _rows(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        return [json.loads(row) for row in (await self._ask("GET", f"/v1/files/{file_id}/content")).text.splitlines()]

    async def _ended(self, path: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            while (found := (await self._ask("GET", path)).json())["status"] not in ENDED:
                await asyncio.sleep(LOOK_S)
        return dict(found)

    async def _ask(self, method: str, path: str, **rest: Any) -> httpx.Response:
        """Asks one router after the other until one answers; fails if it says anything but yes or not now."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    router = self._rng.choice(self._cluster.names("router"))
                    answer = await self._http.request(method, self._cluster.url(router) + path, **rest)
                except httpx.TransportError:
                    await asyncio.sleep(0.2)
                    continue
                if answer.status_code == 200:
                    return answer
                assert answer.status_code in (429, 503), f"{method} {path}: {answer.status_code} {answer.text[:500]}"
                await asyncio.sleep(min(float(answer.headers.get("retry-after", 1)), 1.0))


def _response_of(seed: int) -> dict[str, Any]:
    return {"model": "default", "input": "go", "max_output_tokens": NUM_TOKENS, "seed": seed, "ignore_eos": True}


def text_of(response: dict[str, Any]) -> str:
    """What a response says."""
    return "".join(part.get("text", "") for item in response["output"] for part in item.get("content", ()))
