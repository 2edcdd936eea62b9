"""LangChain's standard tests of chat models, with ChatOpenAI pointed here by OPENAI_API_BASE. It knows nothing of the server."""

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChatOpenAI(ChatModelIntegrationTests):
    """Says what the model can do; the tests are inherited."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # LangChain asks for usage in streams by itself only of OpenAI's own address. Many tests want exactly one call,
        # where a small model does not stop by itself.
        one_call = {"parallel_tool_calls": False}
        return {"model": "default", "temperature": 0, "max_tokens": 64, "stream_usage": True, "model_kwargs": one_call}

    @property
    def model_override_value(self) -> str:
        return "SmolLM2-135M-Instruct"

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        # Else objects may have more properties than are asked for, and a small model does not stop inventing them.
        return {"method": "json_schema", "strict": True}

    @property
    def supports_json_mode(self) -> bool:
        return True
