"""The suites: where each comes from, how it is run, and which of its tests fail for a reason that is known.

To add one: a row in SUITES, and a file of tests beside this one where it brings none. It knows nothing of running them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Expected:
    """Failures that are as they should be. `tests` finds their names, `says` what each must fail with (regular expressions)."""

    tests: str
    says: str
    reason: str


@dataclass(frozen=True)
class Suite:
    """`packages`: what its environment holds, the first is the one it is about. `sdist`: its tests are in its source archive.
    `flags`: the server's."""

    name: str
    packages: tuple[str, ...]
    tests: tuple[str, ...]
    plugins: tuple[str, ...] = ("record",)
    sdist: bool = False
    expected: tuple[Expected, ...] = ()
    arguments: tuple[str, ...] = ()
    flags: tuple[str, ...] = ("--max-model-len", "4096")
    timeout_s: float = 300.0

    @property
    def distribution(self) -> str:
        """The name of what it is about."""
        return self.packages[0].split("[")[0].split("=")[0]

    @property
    def version(self) -> str:
        """Which version of it."""
        return self.packages[0].split("==")[1]


PYTEST = ("pytest==9.2.0", "pytest-timeout==2.4.0")
ASYNC = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session")
API = "tests/api_resources"

SUITES = (
    Suite(
        "openai-python's own",
        ("openai==3.54.0", *PYTEST, "pytest-asyncio==1.5.0", "rich==15.0.0", "inline-snapshot==0.36.1", "aiohttp==3.14.5"),
        tuple(
            f"{API}/{name}"
            for name in (
                "chat/test_completions.py",
                "test_completions.py",
                "test_embeddings.py",
                "test_models.py",
                "test_responses.py",
                "responses",
                "test_files.py",
                "test_batches.py",
            )
        ),
        plugins=("record", "openai_adapter"),
        sdist=True,
        expected=(
            Expected(
                r"/chat/test_completions\.py.*_(retrieve|update|list|delete)(_|\b)",
                r"40[45]",
                "Chat completions are not kept: `store` is without effect. What is to be kept is asked as a response.",
            ),
            Expected(r"/test_models\.py.*_delete\b", r"405", "The model is the one that the server was started with."),
            Expected(
                r"/test_responses\.py.*_compact", r"40[45]", "Nothing is cut from a conversation, nor summarized, by the server."
            ),
            Expected(
                r"/test_embeddings\.py.*_create\[(strict|aiohttp)",
                r"APIResponseValidationError",
                "The SDK asks for base64 where nothing is said, and held strictly to its types refuses the base64 that it gets.",
            ),
            Expected(
                r"api_resources/test_completions\.py.*_with_all_params_overload_1\b",
                r"",
                "`echo` with `logprobs`: the first token of a prompt has no log-probability, so there is null, as OpenAI has it "
                "and lm-eval needs it; the SDK's type has no null there.",
            ),
        ),
        # Theirs turn warnings into errors, and run as many processes as there are cores. "loose" are the same requests, whose
        # answers the client does not hold against its types.
        arguments=("-o", "addopts=", "-o", "filterwarnings=", "-k", "not loose or test_embeddings"),
    ),
    Suite(
        "langchain",
        ("langchain-openai==1.7.4", "langchain-tests==1.1.9", "pytest-asyncio==1.5.0", *PYTEST),
        ("with_langchain.py",),
        arguments=ASYNC,
        expected=(
            Expected(
                r"test_agent_loop",
                r"AssertionError",
                "Whether to call a tool is left to the model, and one of 135 million parameters talks instead.",
            ),
            Expected(
                r"test_(structured_output_pydantic_2_v1|structured_output_optional_param|json_mode)",
                r"LengthFinishReasonError|isinstance\(None",
                "A joke is asked for in texts without a bound; the model does not come to its end in 64 tokens.",
            ),
        ),
    ),
    Suite("pydantic-ai", ("pydantic-ai-slim[openai]==2.68.0", *PYTEST), ("with_pydantic_ai.py",)),
    Suite("instructor", ("instructor==1.17.0", *PYTEST), ("with_instructor.py",)),
    Suite("llm", ("llm==0.36", *PYTEST), ("with_llm.py",)),
    Suite("LiteLLM", ("litellm==1.110.2", *PYTEST), ("with_litellm.py",)),
    Suite("anthropic", ("anthropic==2.14.0", *PYTEST), ("with_anthropic.py",)),
    # Most of the requests that it makes set no limit to the answer.
    # It knows pytest's inner names of 9.0.
    Suite(
        "schemathesis",
        ("schemathesis==4.32.5", "pytest==9.0.3", "pytest-timeout==2.4.0"),
        ("with_schemathesis.py",),
        # One test to pytest, of many parts.
        arguments=("--timeout", "280"),
        flags=("--max-model-len", "128"),
    ),
)
