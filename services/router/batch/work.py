"""One batch being run: every line that has no answer yet is asked, and what it answered is kept on disk as it comes.

A line's idempotency key is made of the batch and its number, so a line asked again, after a crash or by two routers at once,
is the same request with the same answer. It knows nothing of who decided to run the batch here.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from services.router.batch.files import Files
from services.router.batch.inner import Handle, ask
from services.router.batch.lines import Line, body_of, check
from services.router.batch.record import ENDED, Batch, Batches, Fault, Status
from services.router.exchange import MAX_DEADLINE_MS
from services.router.front import Front
from shared.errors import NotFound

MAX_AT_ONCE = 32
REPORT_S = 1.0
RETRY_S = 2.0
LATER = (408, 429, 500, 503)  # 500 and 408 a few times, the others until the batch expires
MAX_TRIES = 3


class Outcome(msgspec.Struct, frozen=True):
    """What a line came to; `row` is the line of the output or error file."""

    number: int
    good: bool
    row: dict[str, Any]


class BatchWork:
    """Runs one batch to its end; cancelled, it can be gone on with by anyone who has the files."""

    def __init__(self, front: Front, files: Files, batches: Batches, handles: dict[str, Handle], batch: Batch):
        self._front = front
        self._files = files
        self._batches = batches
        self._handle = handles[batch.endpoint]
        self._batch = batch
        self._input = files.path(batch.tenant, batch.input_file_id)
        self._part = self._input.with_name(f"{batch.id}.part")
        self._outcomes: dict[int, bool] = {}

    async def run(self) -> None:
        """To the end, whatever that is."""
        max_bytes = self._front.config.max_body_bytes
        try:
            await self._files.get(self._batch.tenant, self._batch.input_file_id)
            lines, faults = await asyncio.to_thread(check, self._input, self._batch.endpoint, max_bytes)
        except (NotFound, FileNotFoundError):
            lines, faults = [], [Fault(code="input_file_missing", message="The input file is not there any more.")]
        if faults:
            await self._change(lambda batch: batch.now("failed", faults=tuple(faults)))
            return
        await self._change(lambda batch: batch.now("in_progress", total=len(lines)) if batch.status == "validating" else batch)
        self._outcomes = {outcome.number: outcome.good for outcome in await asyncio.to_thread(read_part, self._part)}
        with self._part.open("ab") as part:
            ended = await self._ask_all([line for line in lines if line.number not in self._outcomes], part)
        await self._finish(ended)

    async def _ask_all(self, lines: list[Line], part: BinaryIO) -> Status:
        """Asks the lines; how that ended: completed, cancelled or expired."""
        if self._batch.status == "finalizing":
            return "completed"
        if self._batch.status == "cancelling":
            return "cancelled"
        todo = iter(lines)
        askers = [asyncio.create_task(self._ask_some(todo, part)) for _ in range(min(MAX_AT_ONCE, len(lines)))]
        all_asked = asyncio.gather(*askers)
        try:
            while True:
                if (await self._report()) == "cancelling":
                    return "cancelled"
                if time.time() >= self._batch.expires_at:
                    await _end(askers)
                    for line in lines:
                        if line.number not in self._outcomes:
                            self._keep(expired(self._batch, line), part)
                    return "expired"
                if all_asked.done():
                    await all_asked
                    return "completed"
                await asyncio.wait([all_asked], timeout=REPORT_S)
        finally:
            await _end(askers)
            await asyncio.gather(all_asked, return_exceptions=True)

    async def _ask_some(self, todo: Iterable[Line], part: BinaryIO) -> None:
        for line in todo:
            self._keep(await self._ask(line), part)

    async def _ask(self, line: Line) -> Outcome:
        body = await asyncio.to_thread(body_of, self._input, line)
        tries = 0
        while True:
            left_ms = int(min(max(self._batch.expires_at - time.time(), 1) * 1000, MAX_DEADLINE_MS))
            headers = {"idempotency-key": f"{self._batch.id}/{line.number}", "x-roadtrain-deadline-ms": str(left_ms)}
            who = {"path": self._batch.endpoint, "tenant": self._batch.tenant, "key_id": self._batch.key_id}
            status, answered, data = await ask(self._handle, self._front, **who, body=body, headers=headers)
            tries += status not in (429, 503)
            if status not in LATER or tries == MAX_TRIES or answered.get("x-should-retry") == "false":
                break
            await asyncio.sleep(float(answered.get("retry-after", RETRY_S)))
        response = {"status_code": status, "request_id": answered.get("x-request-id", ""), "body": msgspec.json.decode(data)}
        return Outcome(line.number, status == 200, output_row(self._batch, line, response, None))

    def _keep(self, outcome: Outcome, part: BinaryIO) -> None:
        append_part(part, outcome)
        self._outcomes[outcome.number] = outcome.good

    async def _report(self) -> Status:
        """Says how far it is; its status now."""
        good = sum(self._outcomes.values())
        bad = len(self._outcomes) - good
        await self._change(lambda batch: msgspec.structs.replace(batch, completed=good, failed=bad))
        return self._batch.status

    async def _finish(self, ended: Status) -> None:
        batch = self._batch
        if ended == "completed":
            await self._change(lambda batch: batch.now("finalizing"))
        made: dict[str, str] = {}
        for member, good in (("output_file_id", True), ("error_file_id", False)):
            path = self._files.new_path(batch.tenant)
            if num_bytes := await asyncio.to_thread(write_rows, path, self._part, good):
                name = f"{batch.id}_{'output' if good else 'error'}.jsonl"
                record = await self._files.add(batch.tenant, path, num_bytes=num_bytes, filename=name, purpose="batch_output")
                made[member] = record.id
        await self._report()
        await self._change(lambda batch: batch if batch.status in ENDED else batch.now(ended, **made))
        self._part.unlink(missing_ok=True)

    async def _change(self, make: Callable[[Batch], Batch]) -> None:
        self._batch = await self._batches.change(self._batch.tenant, self._batch.id, make)


def output_row(batch: Batch, line: Line, response: dict[str, Any] | None, error: dict[str, str] | None) -> dict[str, Any]:
    """A line of an output or error file, as OpenAI writes it."""
    return {
        "id": f"batch_req_{batch.id.removeprefix('batch_')}_{line.number}",
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }


def expired(batch: Batch, line: Line) -> Outcome:
    """Of a line that was not answered in time."""
    error = {"code": "batch_expired", "message": "This request could not be executed before the completion window expired."}
    return Outcome(line.number, False, output_row(batch, line, None, error))


def append_part(part: BinaryIO, outcome: Outcome) -> None:
    """Keeps an outcome, on a line of its own even if whoever wrote before died, or met a full disk, in the middle of one."""
    part.write(b"\n" + msgspec.json.encode(outcome) + b"\n")
    part.flush()


def read_part(path: Path) -> list[Outcome]:
    """What was kept; a line that a crash cut short does not count."""
    outcomes = []
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for row in file:
            with contextlib.suppress(msgspec.DecodeError):
                outcomes.append(msgspec.json.decode(row, type=Outcome))
    return outcomes


def write_rows(path: Path, part: Path, good: bool) -> int:
    """Writes the rows of good (or bad) outcomes in the order of the input, one each; how many bytes, 0: no file."""
    rows = {outcome.number: outcome.row for outcome in read_part(part) if outcome.good is good}
    if not rows:
        return 0
    with path.open("xb") as file:
        file.writelines(msgspec.json.encode(rows[number]) + b"\n" for number in sorted(rows))
        return file.tell()


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
