"""POST /tokenize, POST /detokenize and GET /tokenizer_info, in vLLM's shapes: what lm-eval's remote tokenizer asks for.

Here what spells a special token in a prompt becomes that token, as in vLLM: who counts or cuts ids by hand must see those
that templates write, and gains nothing, as any id may be sent to completions. It knows nothing of generating.
"""

from typing import Any

import msgspec

from services.router.accept import chat_request
from services.router.exchange import Exchange
from services.router.front import Front
from services.router.request import GenerateRequest
from services.router.schema import ChatBody, Message, convert, read
from services.router.validate import check_model
from shared.errors import InvalidRequest
from shared.pb import tokenizer_pb2

MAX_CHARS = 2**20
MAX_IDS = 2**18


class TokenizeText(msgspec.Struct, kw_only=True):
    """A text to encode."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChat(msgspec.Struct, kw_only=True):
    """A chat to render and encode, in the words of a chat completion."""

    model: str | None = None
    messages: list[Message]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class Tokenized(msgspec.Struct, kw_only=True):
    """Ids of a text. `token_strs`: as the vocabulary spells them, if asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenize(msgspec.Struct, kw_only=True):
    """Ids to turn into text."""

    model: str | None = None
    tokens: list[int]


class Detokenized(msgspec.Struct, kw_only=True):
    """The text, special tokens spelled out."""

    prompt: str


class TokenizerInfo(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What tokenizer_config.json says, as far as clients use it."""

    tokenizer_class: str
    model_max_length: int
    vocab_size: int
    chat_template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None


async def tokenize(exchange: Exchange, front: Front) -> None:
    """Ids of a text or of a chat. Raises RoadtrainError."""
    value = await exchange.read_object(front.config.max_body_bytes)
    if "messages" in value:
        asked, wants_strings = _chat(exchange, front, value)
    else:
        asked, wants_strings = _text(exchange, front, value)
    texts = front.plane.texts
    (token_ids,) = await texts.encode(asked)
    strings: list[str] | None = None
    if wants_strings:
        _check_length(len(token_ids), "return_token_strs")
        strings = await texts.tokens(token_ids)
    most = front.plane.model.max_model_len
    await exchange.answer_object(Tokenized(count=len(token_ids), max_model_len=most, tokens=token_ids, token_strs=strings))


async def detokenize(exchange: Exchange, front: Front) -> None:
    """The text of ids. Raises RoadtrainError."""
    body, unknown = convert(await exchange.read_object(front.config.max_body_bytes), Detokenize)
    exchange.note_ignored(unknown, strict=front.config.strict)
    _check_model(exchange, front, body.model)
    _check_length(len(body.tokens), "tokens")
    if body.tokens and not 0 <= min(body.tokens) <= max(body.tokens) < 2**31:
        raise InvalidRequest("Invalid 'tokens': holds what is no token id.", param="tokens", code="invalid_token_id")
    await exchange.answer_object(Detokenized(prompt=await front.plane.texts.detokenize(body.tokens)))


async def tokenizer_info(exchange: Exchange, front: Front) -> None:
    """Special tokens and template."""
    description = await front.plane.texts.describe()
    special = {name: spelling for name, spelling in description.special_tokens.items() if name in TokenizerInfo.__struct_fields__}
    info = TokenizerInfo(
        tokenizer_class="PreTrainedTokenizerFast",
        model_max_length=front.plane.model.max_model_len,
        vocab_size=description.vocab_size,
        chat_template=description.chat_template or None,
        **special,
    )
    await exchange.answer_object(info)


def _text(exchange: Exchange, front: Front, value: dict[str, Any]) -> tuple[tokenizer_pb2.EncodeRequest, bool]:
    body, unknown = convert(value, TokenizeText)
    exchange.note_ignored(unknown, strict=front.config.strict)
    _check_model(exchange, front, body.model)
    if len(body.prompt) > MAX_CHARS:
        raise InvalidRequest(
            f"Invalid 'prompt': the most is {MAX_CHARS} characters.", param="prompt", code="string_above_max_length"
        )
    text = tokenizer_pb2.Text(text=body.prompt, add_special_tokens=body.add_special_tokens, read_special_tokens=True)
    return tokenizer_pb2.EncodeRequest(texts=[text]), bool(body.return_token_strs)


def _chat(exchange: Exchange, front: Front, value: dict[str, Any]) -> tuple[tokenizer_pb2.EncodeRequest, bool]:
    """As a chat completion would have it: what that refuses is refused."""
    own, unknown = convert(value, TokenizeChat)
    _check_model(exchange, front, own.model)
    chat = {name: given for name, given in value.items() if name in _OF_CHAT}
    body, _ = read({"model": front.plane.model.names[0], **chat}, ChatBody)
    exchange.note_ignored([name for name in unknown if name not in _OF_CHAT], strict=front.config.strict)
    prompt = chat_request(body, exchange.caller()).prompt
    if not isinstance(prompt, tokenizer_pb2.Chat):
        raise TypeError("a chat body makes a chat")
    return tokenizer_pb2.EncodeRequest(chat=prompt), bool(own.return_token_strs)


_OF_CHAT = (frozenset(TokenizeChat.__struct_fields__) | {"chat_template"}) - {"model", "return_token_strs"}


def _check_model(exchange: Exchange, front: Front, model: str | None) -> None:
    names = front.plane.model.names
    check_model(GenerateRequest(model=names[0] if model is None else model, identity=exchange.identity, prompt=""), names)


def _check_length(length: int, param: str) -> None:
    if length > MAX_IDS:
        message = f"Invalid '{param}': {length} tokens are too many at once; the most is {MAX_IDS}."
        raise InvalidRequest(message, param=param, code="array_above_max_length")
