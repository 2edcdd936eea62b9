"""pydantic-ai: an agent with a tool, and answers of a type. It knows nothing of the server."""

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.settings import ModelSettings

SETTINGS = ModelSettings(temperature=0, max_tokens=200)


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
    assert answer.usage().output_tokens > 0
