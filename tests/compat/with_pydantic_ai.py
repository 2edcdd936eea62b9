"""pydantic-ai: an agent with a tool, and answers of a type. It knows nothing of the server."""

from collections.abc import Callable
from typing import Annotated

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, RunContext, ToolOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.settings import ModelSettings

SETTINGS = ModelSettings(temperature=0, max_tokens=100)


class City(BaseModel):
    """A city and its country."""

    city: str = Field(max_length=40)
    country: str = Field(max_length=40)


MODELS = [OpenAIChatModel, OpenAIResponsesModel]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("output", [ToolOutput, NativeOutput])
def test_a_typed_output(model: type, output: type) -> None:
    agent = Agent(model("default"), output_type=output(City), model_settings=SETTINGS, retries=0)
    answer = agent.run_sync("Where is the Eiffel tower?")
    assert isinstance(answer.output, City)
    assert answer.usage.output_tokens > 0


class CallsFirst(AbstractCapability[None]):
    """Says which tool comes first and which then: a small model does not find to an end by itself."""

    def get_model_settings(self) -> Callable[[RunContext[None]], ModelSettings]:
        return lambda context: ModelSettings(tool_choice=["population" if context.run_step == 1 else "final_result"])


@pytest.mark.parametrize("model", MODELS)
def test_a_tool_and_a_typed_output(model: type) -> None:
    agent = Agent(model("default"), output_type=ToolOutput(City), model_settings=SETTINGS, capabilities=[CallsFirst()])
    asked = []

    @agent.tool_plain
    def population(number: Annotated[int, Field(ge=0, le=99)]) -> int:
        """The population of the city of that number."""
        asked.append(number)
        return 2_100_000

    answer = agent.run_sync("What is the population of city number 7? Which city is it?")
    assert asked
    assert isinstance(answer.output, City)


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_of_text(model: type) -> None:
    agent = Agent(model("default"), model_settings=SETTINGS)
    with_pieces = agent.run_stream_sync("What is the capital of France?")
    pieces = list(with_pieces.stream_text(delta=True))
    assert len(pieces) > 1
    assert "Paris" in "".join(pieces)
