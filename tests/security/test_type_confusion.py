"""Each field of each body, at any depth, with each kind of value: 200 or 400, and everybody else's tokens stay the same.

`make test` looks at the canary after each field, `make full` after each value.
"""

import json
from itertools import groupby
from operator import itemgetter

import pytest

from services.router.app import ENDPOINTS
from tests.security.bodies import GOOD, body_types, odd_bodies, posts
from tests.security.patient import Patient, check_error

ALLOWED = {200, 400}


async def sweep(patient: Patient, path: str, *, every: bool) -> int:
    """How many bodies were sent."""
    num_sent = 0
    for where, group in groupby(odd_bodies(path), itemgetter(0)):
        for _, body in group:
            status, answer = await patient.post(path, body)
            num_sent += 1
            # A model of another name is not there; all else is the body's fault.
            assert status in (ALLOWED | {404} if where == "model" else ALLOWED), (where, body, answer)
            if status != 200:
                assert check_error(answer)["param"] is not None, (where, answer)
            if every:
                await patient.canary()
        await patient.canary()
    return num_sent


@pytest.mark.parametrize("path", posts())
async def test_sweep_over_http(patient: Patient, path: str) -> None:
    assert (await patient.post(path, GOOD[path]))[0] == 200
    assert await sweep(patient, path, every=False) > 300
    assert (await patient.post(path, GOOD[path]))[0] == 200


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", posts())
async def test_sweep_over_http_and_look_each_time(patient: Patient, path: str) -> None:
    await sweep(patient, path, every=True)


def test_every_endpoint_with_a_body_is_swept() -> None:
    """A new row of ENDPOINTS needs a good body in bodies.py, and a type named ...Body in its module."""
    assert set(posts()) == set(GOOD)
    for path in posts():
        assert body_types(ENDPOINTS[path][1]), path
        assert len({json.dumps(body) for _, body in odd_bodies(path)}) > 300


async def test_an_odd_top_level_is_no_body(patient: Patient) -> None:
    for path in posts():
        for value in (None, True, 0, -1, 1.5, "", "x", [], 2**64, [{}]):
            status, answer = await patient.post(path, value)
            assert (status, check_error(answer)["code"]) == (400, "invalid_json")
