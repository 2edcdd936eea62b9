"""A plugin for openai-python's own API tests, which were written for a mock that answers anything.

Two things stand between them and a server that means what it says. They name objects that never were ("file_id"): each such id
becomes one of an object made for it. And they give every field at once: one that the server refuses is left out and the request
sent again, if it stands in the list below; the test's record names it. A field that is not listed fails its test.
It knows the SDK's one way to send a request, and nothing of the tests.
"""

import functools
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai._base_client import AsyncAPIClient, SyncAPIClient

# What is given to a request that lacks it (some tests call create() with nothing at all).
NEEDED = {"model": "default", "input": "Say hello.", "purpose": "batch"}
# How long an answer may be where the test does not say: it would be as long as the model likes.
LIMITS = {"/chat/completions": "max_completion_tokens", "/responses": "max_output_tokens"}
NUM_TOKENS = 8
# Fields that the server may refuse, by path.
RESPONSES = frozenset(
    {"access_programs", "background_options", "context_management", "conversation", "image", "include", "moderation", "prompt"}
    | {"previous_response_id", "prompt_cache_options", "tools", "truncation"}
)
REFUSED: dict[str, frozenset[str]] = {
    "/chat/completions": frozenset(
        {"audio", "functions", "logit_bias", "max_completion_tokens", "max_tokens", "moderation", "prediction", "stream_options"}
        | {"web_search_options"}
    ),
    "/completions": frozenset({"best_of", "logit_bias", "stream_options", "suffix"}),
    "/responses": RESPONSES,
    "/responses/input_tokens": RESPONSES,
    "/files": frozenset({"limit", "purpose"}),
    "/batches": frozenset({"limit"}),
    "/responses/input_items": frozenset({"limit"}),
}
ATTEMPTS = 20


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Adapter(f"{config.getoption('--url')}/v1"))


class _Adapter:
    """Stands before the SDK's `request`, and notes for each test what it had to change."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._noted: list[str] = []
        # The ids that tests name, and how to make what they stand for.
        self._real: dict[str, Callable[[str], str]] = {
            r"/files/(file_id)\b": self._file,
            r"/batches/(batch_id)\b": self._batch,
            r"/responses/(resp_677efb5139a88190b512bc3fef8e535d|response_id)\b": self._response,
        }
        SyncAPIClient.request = self._patient(SyncAPIClient.request)  # type: ignore[method-assign]
        AsyncAPIClient.request = self._patient_async(AsyncAPIClient.request)  # type: ignore[method-assign]

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if "respx2_mock" in item.fixturenames:  # type: ignore[attr-defined]
                item.add_marker(pytest.mark.skip(reason="brings its own mock: no server is asked"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        report = yield
        if call.when == "call":
            report.user_properties += [("refused", name) for name in dict.fromkeys(self._noted)]
            self._noted.clear()
        return report

    def _patient(self, send: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(send)
        def request(client: Any, cast_to: Any, options: Any, **kwargs: Any) -> Any:
            self._name_real_objects(options)
            self._limit(options)
            for _ in range(ATTEMPTS):
                try:
                    return send(client, cast_to, options, **kwargs)
                except openai.BadRequestError as error:
                    self._yield_to(options, error)
            raise AssertionError("the server goes on refusing")

        return request

    def _patient_async(self, send: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(send)
        async def request(client: Any, cast_to: Any, options: Any, **kwargs: Any) -> Any:
            self._name_real_objects(options)
            self._limit(options)
            for _ in range(ATTEMPTS):
                try:
                    return await send(client, cast_to, options, **kwargs)
                except openai.BadRequestError as error:
                    self._yield_to(options, error)
            raise AssertionError("the server goes on refusing")

        return request

    def _yield_to(self, options: Any, error: openai.BadRequestError) -> None:
        """Changes the request as the error asks, or raises it."""
        body, query = dict(options.json_data or {}), dict(options.params or {})
        field = re.split(r"[.\[]", error.param or "")[0]
        may = field in REFUSED.get(re.sub(r"/resp_[^/]+", "", options.url), ())
        if field in NEEDED and (error.code == "missing_required_parameter" or may) and body.get(field) != NEEDED[field]:
            body[field] = NEEDED[field]
        elif may and field in body:
            del body[field]
        elif may and field in query:
            del query[field]
        else:
            raise error
        self._noted.append(f"{field} ({error.code})")
        options.json_data, options.params = body, query
        self._limit(options)

    def _limit(self, options: Any) -> None:
        body, name = options.json_data, LIMITS.get(options.url)
        if name is not None and "max_tokens" not in (body or {}):
            options.json_data = {name: NUM_TOKENS, **(body or {})}

    def _name_real_objects(self, options: Any) -> None:
        for pattern, make in self._real.items():
            found = re.match(pattern, options.url)
            if found:
                options.url = options.url.replace(found[1], make(options.url), 1)
        body = options.json_data
        if isinstance(body, dict) and "input_file_id" in body:
            options.json_data = {**body, "input_file_id": self._file(options.url)}

    def _post(self, path: str, **content: Any) -> str:
        answer = httpx2.post(f"{self._base_url}{path}", headers={"Authorization": "Bearer none"}, timeout=60, **content)
        answer.raise_for_status()
        return str(answer.json()["id"])

    def _file(self, url: str) -> str:
        body = {"model": "default", "input": "Say hello.", "max_output_tokens": NUM_TOKENS}
        line = {"custom_id": "1", "method": "POST", "url": "/v1/responses", "body": body}
        return self._post("/files", files={"file": ("lines.jsonl", json.dumps(line).encode())}, data={"purpose": "batch"})

    def _batch(self, url: str) -> str:
        body = {"input_file_id": self._file(url), "endpoint": "/v1/responses", "completion_window": "24h"}
        return self._post("/batches", json=body)

    def _response(self, url: str) -> str:
        body = {"model": "default", "input": "Say hello.", "max_output_tokens": NUM_TOKENS, "background": url.endswith("/cancel")}
        return self._post("/responses", json=body)
