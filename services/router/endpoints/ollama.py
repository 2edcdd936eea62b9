"""/api/...: Ollama's endpoints for what is served; models are neither pulled nor removed here. It knows nothing of lines."""

import hashlib
from dataclasses import replace
from typing import Any

import msgspec

from services.router.answers import Opened, collect, part_reader, start_all, stream
from services.router.dialects import chat_of, completion_of, served_name, speaking
from services.router.endpoints.embeddings import embedding_request
from services.router.endpoints.health import own_version
from services.router.exchange import Exchange
from services.router.front import Front
from services.router.generate import TextDelta
from services.router.logprobs import chat_content
from services.router.needs import ServedModel
from services.router.ollama import NAMES, Asked, OllamaChat, OllamaEmbed, OllamaGenerate, Options, chat_body, generate_body
from services.router.ollama_lines import Clock, Kind, LineWriter, line, moment, whole
from services.router.reading import formats
from services.router.request import GenerateRequest
from services.router.schema import convert
from services.router.schema_vectors import EmbeddingBody
from services.router.sse import LINES
from services.router.validate import check_model
from services.router.vectors import make_vectors, numbers

# The model is never unloaded.
_NEVER = "9999-12-31T23:59:59Z"


class OllamaShow(msgspec.Struct, kw_only=True):
    """POST /api/show; `name` is the older word."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None


async def chat(exchange: Exchange, front: Front) -> None:
    """Answers a chat, streamed unless told otherwise. Raises RoadtrainError while nothing has been sent."""
    front.admit()
    value = await exchange.read_object(front.config.max_body_bytes)
    asked, unknown = convert(value, OllamaChat)
    _note_ignored(exchange, front, value, unknown)
    if not asked.messages:
        await _load(exchange, front, asked, "chat")
        return
    with speaking(NAMES):
        request = chat_of(chat_body(asked) | {"model": served_name(front, asked.model)}, exchange.caller())
        await _answer(exchange, front, asked, request, "chat")


async def generate(exchange: Exchange, front: Front) -> None:
    """Answers a prompt, streamed unless told otherwise. Raises RoadtrainError while nothing has been sent."""
    front.admit()
    value = await exchange.read_object(front.config.max_body_bytes)
    asked, unknown = convert(value, OllamaGenerate)
    _note_ignored(exchange, front, value, unknown)
    if not asked.prompt:
        await _load(exchange, front, asked, "generate")
        return
    with speaking({**NAMES, "messages": "prompt"}):
        body = generate_body(asked) | {"model": served_name(front, asked.model)}
        if asked.raw:
            request = completion_of(body, exchange.caller())
            # Where nothing is said a completion would be short.
            request = replace(request, sampling=replace(request.sampling, max_tokens=body["max_tokens"]))
        else:
            request = chat_of(body, exchange.caller())
        await _answer(exchange, front, asked, request, "generate")


async def embed(exchange: Exchange, front: Front) -> None:
    """A vector of each input. Raises RoadtrainError."""
    front.admit()
    clock = Clock()
    value = await exchange.read_object(front.config.max_body_bytes)
    asked, unknown = convert(value, OllamaEmbed)
    _note_ignored(exchange, front, value, unknown)
    head = {"model": asked.model}
    if not asked.input:
        _check_model(exchange, front, asked.model)
        await exchange.answer_object(head | {"embeddings": []})
        return
    with speaking({"truncate_prompt_tokens": "truncate"}):
        body = EmbeddingBody(
            model=served_name(front, asked.model),
            input=list(asked.input) if isinstance(asked.input, list) else asked.input,
            dimensions=asked.dimensions,
            truncate_prompt_tokens=None if asked.truncate is False else -1,
        )
        request = embedding_request(body, exchange.caller())
        made = await exchange.while_listening(make_vectors(front.plane, request, front.config.default_deadline_s))
    took = clock.took()
    counts = {name: took[name] for name in ("total_duration", "load_duration")} | {"prompt_eval_count": made.num_prompt_tokens}
    await exchange.answer_object(head | {"embeddings": [numbers(vector).tolist() for vector in made.values]} | counts)


async def tags(exchange: Exchange, front: Front) -> None:
    """Every name of the model."""
    model = front.plane.model
    await exchange.answer_object({"models": [_entry(model, name) for name in model.names if exchange.identity.may_use(name)]})


async def running(exchange: Exchange, front: Front) -> None:
    """The model, which always runs."""
    model = front.plane.model
    entry = _entry(model, model.names[0])
    del entry["modified_at"]
    entry |= {"expires_at": _NEVER, "context_length": model.max_model_len}
    await exchange.answer_object({"models": [entry]})


async def show(exchange: Exchange, front: Front) -> None:
    """What is known of a model. Raises NotFound."""
    asked, unknown = convert(await exchange.read_object(front.config.max_body_bytes), OllamaShow)
    exchange.note_ignored(unknown, strict=front.config.strict)
    model = front.plane.model
    _check_model(exchange, front, asked.model or asked.name or "")
    description = await front.plane.texts.describe()
    spoken = formats(description, tool_parser=front.config.tool_parser, reasoning_parser=front.config.reasoning_parser)
    await exchange.answer_object(
        {
            "modelfile": f"FROM {model.names[0]}\n",
            "parameters": "",
            "template": description.chat_template,
            "details": _details(),
            "model_info": {
                "general.architecture": "roadtrain",
                "general.basename": model.names[0],
                "roadtrain.context_length": model.max_model_len,
                "roadtrain.vocab_size": description.vocab_size,
            },
            "capabilities": ["completion", *(["tools"] if spoken.tools else []), *(["thinking"] if spoken.reasoning else [])],
            "modified_at": moment(model.created),
        }
    )


async def version(exchange: Exchange, front: Front) -> None:
    """Roadtrain's own."""
    await exchange.answer_object({"version": own_version()})


async def _answer(exchange: Exchange, front: Front, asked: Asked, request: GenerateRequest, kind: Kind) -> None:
    clock = Clock()
    vocabulary = front.plane.vocabulary if asked.logprobs else None

    def logprobs(event: TextDelta) -> Any:
        clock.tick()
        return None if event.logprobs is None else chat_content(front.plane.vocabulary, event.logprobs)

    async def start() -> Opened:
        generations = await start_all(front.plane.generator, [request])
        reader = part_reader(front, generations[0])
        writer = LineWriter(kind, asked.model, generations[0], reader, clock, vocabulary)
        return Opened(generations, [writer], include_usage=False, ending=b"")

    if asked.stream is not False:
        await stream(exchange, front, start, LINES)
        return
    generations, choices = await collect(exchange, front, [request], lambda _: logprobs)
    await exchange.answer_object(whole(kind, asked.model, choices[0], generations[0], clock))


async def _load(exchange: Exchange, front: Front, asked: Asked, kind: Kind) -> None:
    """To ask for nothing is to ask for the model to be loaded, or with keep_alive 0 unloaded: it stays."""
    _check_model(exchange, front, asked.model)
    reason = "unload" if asked.keep_alive == 0 else "load"
    answer = line(kind, asked.model, "") | {"done": True, "done_reason": reason}
    if asked.stream is False:
        await exchange.answer_object(answer)
    else:
        await exchange.answer(200, msgspec.json.encode(answer) + b"\n", LINES)


def _check_model(exchange: Exchange, front: Front, model: str) -> None:
    check_model(GenerateRequest(model=served_name(front, model), identity=exchange.identity, prompt=""), front.plane.model.names)


def _note_ignored(exchange: Exchange, front: Front, value: dict[str, Any], unknown: list[str]) -> None:
    options = value.get("options") or {}
    known = Options.__struct_fields__
    unknown += [f"options.{name}" for name in options if name not in known]
    exchange.note_ignored(unknown, strict=front.config.strict)


def _entry(model: ServedModel, name: str) -> dict[str, Any]:
    digest = hashlib.sha256(model.fingerprint.encode()).hexdigest()
    return {"name": name, "model": name, "modified_at": moment(model.created), "size": 0, "digest": digest, "details": _details()}


def _details() -> dict[str, Any]:
    """What only the model's files say is not known here."""
    names = ("parent_model", "format", "family", "parameter_size", "quantization_level")
    return dict.fromkeys(names, "") | {"families": None}
