"""instructor: typed answers through tools and through JSON schemas. It knows nothing of the server."""

import instructor
import openai
import pytest
from pydantic import BaseModel, Field

QUESTION = [{"role": "user", "content": "Anna is 31 years old. Who is it?"}]
MODES = [instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=40)
    age: int = Field(ge=0, le=150)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_an_answer_is_a_person(mode: instructor.Mode) -> None:
    client = instructor.from_openai(openai.OpenAI(), mode=mode)
    person = client.chat.completions.create(
        model="default", messages=QUESTION, response_model=Person, temperature=0, max_tokens=200, max_retries=0
    )
    assert person.name
    assert 0 <= person.age <= 150


@pytest.mark.parametrize("mode", MODES[:3], ids=lambda mode: mode.name)
def test_a_person_comes_piece_by_piece(mode: instructor.Mode) -> None:
    client = instructor.from_openai(openai.OpenAI(), mode=mode)
    pieces = list(
        client.chat.completions.create_partial(
            model="default", messages=QUESTION, response_model=Person, temperature=0, max_tokens=200, max_retries=0
        )
    )
    assert len(pieces) > 1
    assert pieces[-1].name
    assert 0 <= pieces[-1].age <= 150


async def _ask() -> Person:
    client = instructor.from_openai(openai.AsyncOpenAI(), mode=instructor.Mode.TOOLS)
    person: Person = await client.chat.completions.create(
        model="default", messages=QUESTION, response_model=Person, temperature=0, max_tokens=200, max_retries=0
    )
    return person


def test_asynchronously() -> None:
    import asyncio

    assert asyncio.run(_ask()).name
