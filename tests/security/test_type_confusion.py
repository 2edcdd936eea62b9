"""Each field of each body, at any depth, with each kind of value: 200 or 400, and everybody else's tokens stay the same.

`make test` sends some of them, others each time, and looks at the canary after each field; `make full` all, and each time.
"""

import json
import random
from itertools import groupby
from operator import itemgetter

import pytest

from services.router.app import ENDPOINTS
from tests.security.bodies import GOOD, NAMES, asking, body_types, odd_bodies, posts
from tests.security.patient import Patient, check_answer, refusal

SOME = 350


async def sweep(patient: Patient, path: str, *, every: bool) -> int:
    """How many bodies were sent."""
    num_sent = 0
    bodies = list(odd_bodies(path))
    if not every and len(bodies) > SOME:
        bodies = [bodies[index] for index in sorted(random.sample(range(len(bodies)), SOME))]
    for where, group in groupby(bodies, itemgetter(0)):
        for _, body in group:
            status, answer = await patient.post(path, body)
            num_sent += 1
            named = where in NAMES or path == "/v1/batches"
            assert status in ({200, refusal(path), 404} if named else {200, refusal(path)}), (where, body, answer)
            if status == refusal(path):
                assert check_answer(path, answer) != "", (where, answer)
            if every:
                await patient.canary()
        await patient.canary()
    return num_sent


@pytest.mark.parametrize("path", posts())
async def test_sweep_over_http(patient: Patient, path: str) -> None:
    begun = (await patient.post(path, GOOD[path]))[0]
    assert begun == 200 or path not in asking()
    assert await sweep(patient, path, every=False) > 30
    assert (await patient.post(path, GOOD[path]))[0] == begun


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", posts())
async def test_sweep_over_http_and_look_each_time(patient: Patient, path: str) -> None:
    await sweep(patient, path, every=True)


def test_every_endpoint_with_a_body_is_swept() -> None:
    """A new row of ENDPOINTS needs a good body in bodies.py, and a type named ...Body in its module."""
    assert set(posts()) <= set(GOOD)
    for path in posts():
        assert body_types(ENDPOINTS[path]["POST"]), path
        assert len({json.dumps(body) for _, body in odd_bodies(path)}) > 30


async def test_an_odd_top_level_is_no_body(patient: Patient) -> None:
    for path in posts():
        for value in (None, True, 0, -1, 1.5, "", "x", [], 2**64, [{}]):
            status, answer = await patient.post(path, value)
            assert status == refusal(path)
            check_answer(path, answer)
