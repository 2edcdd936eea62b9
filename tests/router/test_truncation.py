"""How a prompt is cut where that is asked for. It knows nothing of what the tokens are."""

import pytest

from services.router.request import GenerateRequest
from services.router.validate import ModelLimits, truncated
from shared.errors import InvalidRequest
from shared.sampling import SamplingParams

IDS = list(range(50))
LIMITS = ModelLimits(max_model_len=20, vocab_size=100)


def cut(most: int | None, **sampling: int) -> list[int]:
    request = GenerateRequest("m", "t", IDS, SamplingParams(**sampling), truncate_prompt_tokens=most)
    return truncated(request, IDS, LIMITS)


def test_nothing_is_cut_unasked() -> None:
    assert cut(None) == IDS


def test_the_last_tokens_stay() -> None:
    assert cut(3) == [47, 48, 49]
    assert cut(20) == IDS[-20:]


def test_minus_one_leaves_room_for_the_output() -> None:
    assert cut(-1) == IDS[-19:]
    assert cut(-1, max_tokens=6) == IDS[-14:]
    assert cut(-1, min_tokens=8) == IDS[-12:]
    # Where there is none the length is refused later, with its numbers.
    assert cut(-1, max_tokens=20) == IDS


@pytest.mark.parametrize("most", [0, -2, 21])
def test_other_numbers_are_refused(most: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        cut(most)
    assert refused.value.param == "truncate_prompt_tokens"
