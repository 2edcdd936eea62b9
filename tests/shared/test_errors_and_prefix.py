"""The error table has a row for every class, and the prefix chain tells apart what it must. It knows no caller."""

import inspect

import pytest

from shared import errors
from shared.prefix import block_keys

pytestmark = pytest.mark.optimized


def test_every_error_has_a_look() -> None:
    for cls in vars(errors).values():
        if inspect.isclass(cls) and issubclass(cls, errors.RoadtrainError) and cls is not errors.RoadtrainError:
            error = cls("what is wrong", param="field")
            look = errors.mapped(error)
            assert 400 <= look.http_status < 600
            assert errors.as_object(error) == {
                "message": "what is wrong",
                "type": look.type,
                "param": "field",
                "code": cls.default_code,
            }
            # Where no key was sent OpenAI says no code.
            assert cls.default_code or cls is errors.NoApiKey


def test_a_bug_says_nothing_about_itself() -> None:
    shown = errors.from_exception(ValueError("/etc/secret 0x7f"))
    assert isinstance(shown, errors.InternalError)
    assert "secret" not in shown.message


def test_the_chain_depends_on_salt_parent_and_tokens() -> None:
    tokens = list(range(40))
    keys = block_keys(b"tenant", tokens, 16)
    assert len(keys) == 2
    assert keys == block_keys(b"tenant", [*tokens[:32], 999], 16)
    assert keys[0] != block_keys(b"other", tokens, 16)[0]
    changed = block_keys(b"tenant", [1, *tokens[1:]], 16)
    assert not set(keys) & set(changed)
    assert block_keys(b"", [1] * 32, 16)[0] != block_keys(b"", [1] * 32, 16)[1]
