"""What answers about files and batches look like: OpenAI's shapes. It knows nothing of how files are kept or batches run."""

from typing import Literal

from services.router.batch.record import Status
from services.router.shapes import Shape


class FileObject(Shape):
    """A file; times are seconds since 1970."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"]


class FileList(Shape):
    """A page of files, newest first."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Shape):
    """It is gone."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class BatchFault(Shape):
    """Why a batch could not begin; `line` counts from 1."""

    code: str
    message: str
    line: int | None
    param: str | None


class BatchFaults(Shape):
    """The first of them."""

    object: Literal["list"]
    data: list[BatchFault]


class BatchCounts(Shape):
    """Lines of a batch."""

    total: int
    completed: int
    failed: int


class BatchObject(Shape):
    """How a batch stands."""

    id: str
    object: Literal["batch"]
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Status
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None
    output_file_id: str | None
    error_file_id: str | None
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    errors: BatchFaults | None
    request_counts: BatchCounts


class BatchList(Shape):
    """A page of batches, newest first."""

    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
