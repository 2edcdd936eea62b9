"""What each endpoint takes and gives, for `/openapi.json`: one row per row of app.py's table, no more, no fewer.

It knows nothing of how endpoints work, nor of how the description is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from services.router import shapes, shapes_anthropic, shapes_files, shapes_ollama, shapes_responses, shapes_vectors
from services.router.anthropic.body import CountBody, MessageBody
from services.router.endpoints import batches, files, ollama, tokenize
from services.router.ollama import OllamaChat, OllamaEmbed, OllamaGenerate
from services.router.responses.body import ResponsesBody
from services.router.schema import ChatBody, CompletionBody
from services.router.schema_vectors import EmbeddingBody, RerankBody, ScoreBody
from services.router.sse import LINES
from services.router.tgi import TgiAnswer, TgiError, TgiEvent, TgiGenerate, TgiInfo

Type = type[msgspec.Struct]
Answer = Type | type[list[TgiAnswer]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `answer` None: no JSON, but `media_type`; several bodies: any of them.

    form: names and JSON schemas of a multipart body's parts. events: what each event of a stream holds, if the answer can be
    streamed. `path` and `query` explain parameters by name. public: needs no key.
    """

    summary: str
    answer: Answer | None
    bodies: tuple[Type, ...] = ()
    form: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    events: Type | None = None
    media_type: str = "application/json"
    stream_media_type: str = "text/event-stream"
    error: Type = shapes.Error
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    public: bool = False


_LINES = LINES.decode()
_PAGE = {"limit": "How many at most.", "after": "The last id of the page before."}
_FILE, _BATCH = {"file_id": "A file's id."}, {"batch_id": "A batch's id."}
_RESPONSE = {"response_id": "A response's id."}
_UPLOAD: Mapping[str, Mapping[str, Any]] = {
    "file": {"type": "string", "format": "binary"},
    "purpose": {"enum": list(files.PURPOSES)},
}
_MODEL = {"name": "A model's id; it may hold slashes."}

OPERATIONS: Mapping[str, Operation] = {
    "POST /v1/chat/completions": Operation(
        "Answers a chat.", shapes.ChatCompletion, bodies=(ChatBody,), events=shapes.ChatCompletionChunk
    ),
    "POST /v1/completions": Operation(
        "Continues prompts.", shapes.Completion, bodies=(CompletionBody,), events=shapes.Completion
    ),
    "POST /v1/embeddings": Operation("A vector of each input.", shapes_vectors.Embeddings, bodies=(EmbeddingBody,)),
    "POST /v1/score": Operation("How well texts fit each other.", shapes_vectors.Scores, bodies=(ScoreBody,)),
    "POST /v1/rerank": Operation("Documents that fit best first.", shapes_vectors.Ranking, bodies=(RerankBody,)),
    "POST /v2/rerank": Operation("The same under Cohere's newer path.", shapes_vectors.Ranking, bodies=(RerankBody,)),
    "POST /v1/messages": Operation(
        "Answers a message of Anthropic's.",
        shapes_anthropic.MessageAnswer,
        bodies=(MessageBody,),
        events=shapes_anthropic.MessageEvent,
        error=shapes_anthropic.MessageError,
    ),
    "POST /v1/messages/count_tokens": Operation(
        "How many tokens a message's prompt is.",
        shapes_anthropic.MessageCount,
        bodies=(CountBody,),
        error=shapes_anthropic.MessageError,
    ),
    "GET /v1/streams/{rid}": Operation(
        "The rest of a stream whose connection was lost, as it began: chunks of a chat or of a completion.",
        None,
        events=shapes.ChatCompletionChunk,
        path={"rid": "The id of the answer without its prefix."},
        query={"starting_after": "The id of the last event that arrived; the header Last-Event-ID says the same."},
    ),
    "POST /v1/files": Operation("Keeps a file.", shapes_files.FileObject, form=_UPLOAD),
    "GET /v1/files": Operation("One's own files.", shapes_files.FileList, query=_PAGE),
    "GET /v1/files/{file_id}": Operation("What is known of a file.", shapes_files.FileObject, path=_FILE),
    "DELETE /v1/files/{file_id}": Operation("Forgets a file.", shapes_files.FileDeleted, path=_FILE),
    "GET /v1/files/{file_id}/content": Operation("The file itself.", None, media_type="application/octet-stream", path=_FILE),
    "POST /v1/batches": Operation("Queues a batch.", shapes_files.BatchObject, bodies=(batches.BatchBody,)),
    "GET /v1/batches": Operation("One's own batches.", shapes_files.BatchList, query=_PAGE),
    "GET /v1/batches/{batch_id}": Operation("How a batch stands.", shapes_files.BatchObject, path=_BATCH),
    "POST /v1/batches/{batch_id}/cancel": Operation(
        "Ends a batch with the answers it has.", shapes_files.BatchObject, path=_BATCH
    ),
    "POST /v1/responses": Operation(
        "Answers a conversation of items.",
        shapes_responses.Response,
        bodies=(ResponsesBody,),
        events=shapes_responses.ResponseEvent,
    ),
    "POST /v1/responses/input_tokens": Operation(
        "How many tokens a response's prompt is.", shapes_responses.ResponseCount, bodies=(ResponsesBody,)
    ),
    "GET /v1/responses/{response_id}": Operation(
        "A response that is kept, or its events.",
        shapes_responses.Response,
        events=shapes_responses.ResponseEvent,
        path=_RESPONSE,
        query={"stream": "`true` for events.", "starting_after": "The number of the last event that arrived."},
    ),
    "DELETE /v1/responses/{response_id}": Operation("Forgets a response.", shapes_responses.ResponseDeleted, path=_RESPONSE),
    "POST /v1/responses/{response_id}/cancel": Operation(
        "Ends a response in the background.", shapes_responses.Response, path=_RESPONSE
    ),
    "GET /v1/responses/{response_id}/input_items": Operation(
        "What was asked.", shapes_responses.ResponseItems, path=_RESPONSE, query={**_PAGE, "order": "`asc` or `desc`."}
    ),
    "GET /v1/models": Operation("Every name a model answers to.", shapes.ModelList),
    "GET /v1/models/{name}": Operation("One of them.", shapes.Model, path=_MODEL),
    "POST /tokenize": Operation(
        "Token ids of a text or of a chat.", tokenize.Tokenized, bodies=(tokenize.TokenizeText, tokenize.TokenizeChat)
    ),
    "POST /detokenize": Operation("The text of token ids.", tokenize.Detokenized, bodies=(tokenize.Detokenize,)),
    "GET /tokenizer_info": Operation("The model's special tokens and chat template.", tokenize.TokenizerInfo),
    "POST /api/chat": Operation(
        "Ollama's chat; lines of JSON unless `stream` is false.",
        shapes_ollama.OllamaChatLine,
        bodies=(OllamaChat,),
        events=shapes_ollama.OllamaChatLine,
        stream_media_type=_LINES,
        error=shapes_ollama.OllamaError,
    ),
    "POST /api/generate": Operation(
        "Ollama's answer to a prompt; lines of JSON unless `stream` is false.",
        shapes_ollama.OllamaGenerateLine,
        bodies=(OllamaGenerate,),
        events=shapes_ollama.OllamaGenerateLine,
        stream_media_type=_LINES,
        error=shapes_ollama.OllamaError,
    ),
    "POST /api/embed": Operation(
        "A vector of each input.", shapes_ollama.OllamaEmbedded, bodies=(OllamaEmbed,), error=shapes_ollama.OllamaError
    ),
    "GET /api/tags": Operation("Every name of the model.", shapes_ollama.OllamaModels, error=shapes_ollama.OllamaError),
    "POST /api/show": Operation(
        "What is known of a model.",
        shapes_ollama.OllamaShown,
        bodies=(ollama.OllamaShow,),
        error=shapes_ollama.OllamaError,
    ),
    "GET /api/ps": Operation("What runs: the model.", shapes_ollama.OllamaModels, error=shapes_ollama.OllamaError),
    "GET /api/version": Operation("Which Roadtrain this is.", shapes.Version, error=shapes_ollama.OllamaError),
    "POST /": Operation(
        "TGI's answer, a list of one, or its stream.", list[TgiAnswer], bodies=(TgiGenerate,), events=TgiEvent, error=TgiError
    ),
    "POST /generate": Operation("TGI's whole answer.", TgiAnswer, bodies=(TgiGenerate,), error=TgiError),
    "POST /generate_stream": Operation(
        "TGI's answer token by token.", None, bodies=(TgiGenerate,), events=TgiEvent, error=TgiError
    ),
    "GET /info": Operation("What is served, and its limits.", TgiInfo, error=TgiError),
    "GET /openapi.json": Operation("This description.", shapes.Document),
    "GET /health": Operation("Whether a request sent now would be accepted.", shapes.Status, public=True),
    "GET /livez": Operation("Whether this process answers at all.", shapes.Status, public=True),
    "GET /readyz": Operation("The same as /health.", shapes.Status, public=True),
    "GET /version": Operation("Which Roadtrain this is.", shapes.Version, public=True),
}
