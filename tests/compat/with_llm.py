"""`llm`, the command: prompts, streams, schemas, its log; models from a file, as its manual says. It knows no server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = """
- model_id: roadtrain
  model_name: default
  api_base: {url}/v1
  supports_schema: true
  supports_tools: true
- model_id: roadtrain-responses
  model_name: default
  api_base: {url}/v1
  responses: true
- model_id: roadtrain-completion
  model_name: default
  api_base: {url}/v1
  completion: true
"""


@pytest.fixture(autouse=True)
def home(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(url=url))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))


def llm(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "llm", *arguments], capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


QUESTION = ("What is the capital of France?", "-o", "temperature", "0", "-o", "max_tokens", "40")


@pytest.mark.parametrize("model", ["roadtrain", "roadtrain-responses"])
def test_streamed_and_not_are_one_answer(model: str) -> None:
    whole = llm("-m", model, "--no-stream", *QUESTION)
    assert "Paris" in whole
    assert llm("-m", model, *QUESTION) == whole


def test_a_conversation_goes_on() -> None:
    assert llm("-m", "roadtrain", *QUESTION)
    assert llm("-c", "And of Italy?", "-o", "max_tokens", "20")
    assert len(json.loads(llm("logs", "--json"))) == 2


def test_a_completion_model() -> None:
    assert llm("-m", "roadtrain-completion", "Once upon a time", "-o", "max_tokens", "10")


def test_a_schema() -> None:
    answer = json.loads(
        llm("-m", "roadtrain", "--schema", "name, age int", "Anna is 31.", "-o", "max_tokens", "200", "-o", "temperature", "0")
    )
    assert isinstance(answer["name"], str)
    assert isinstance(answer["age"], int)
