"""What a batch keeps on disk while it runs, cut short at any byte by a crash: no other line is spoiled, and none counts twice."""

from pathlib import Path

import pytest

from services.router.batch.work import Outcome, append_part, read_part, write_rows

pytestmark = pytest.mark.optimized

ROWS = [Outcome(number, number != 2, {"custom_id": f"line-{number}", "text": "x" * number}) for number in range(4)]


def _write(path: Path, rows: list[Outcome]) -> None:
    with path.open("ab") as part:
        for row in rows:
            append_part(part, row)


def test_a_line_cut_short_anywhere_spoils_none_that_follows(tmp_path: Path):
    whole = tmp_path / "whole"
    _write(whole, ROWS[:2])
    data = whole.read_bytes()
    for length in range(len(data)):
        part = tmp_path / f"cut-{length}"
        part.write_bytes(data[:length])
        kept = read_part(part)
        assert kept == ROWS[: len(kept)]
        _write(part, ROWS[len(kept) :])
        assert read_part(part) == ROWS


def test_rows_come_once_in_the_order_of_the_input(tmp_path: Path):
    part, out = tmp_path / "part", tmp_path / "out"
    _write(part, [ROWS[3], ROWS[0], ROWS[2], ROWS[0], ROWS[1]])
    assert write_rows(out, part, True) == out.stat().st_size
    assert [line.split(b'"')[3] for line in out.read_bytes().splitlines()] == [b"line-0", b"line-1", b"line-3"]
    assert write_rows(tmp_path / "none", tmp_path / "no part", True) == 0
    assert not (tmp_path / "none").exists()
