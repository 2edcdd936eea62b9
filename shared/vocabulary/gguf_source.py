"""Turns the vocabulary inside a GGUF file into the tokenizer.json that describes the same tokenizer.

Vocabularies: "gpt2" (byte-level BPE, cut by the regex that `tokenizer.ggml.pre` names) and "llama" (SentencePiece BPE
with byte fallback; merges follow from the scores when the file lists none). The facts are llama.cpp's
(src/llama-vocab.cpp); parity is with transformers. It knows nothing of tensors.
"""

from collections.abc import Callable, Mapping
from typing import Any

from shared.errors import StartupError
from shared.gguf import Gguf
from shared.vocabulary.source import Rules, TextSource

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
SPACE = "▁"

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LETTERS_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _like_llama3(digits: str, letters: str = r"\p{L}") -> str:
    return (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[{letters}]+|{digits}"
        rf"| ?[^\s{letters}\p{{N}}]+[\r\n]*|{_SPACES}"
    )


def _like_gpt4o(suffix: str, digits: str) -> str:
    edge = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{edge}{_LETTERS_UPPER}*{_LETTERS_LOWER}+{suffix}|{edge}{_LETTERS_UPPER}+{_LETTERS_LOWER}*{suffix}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    )


_LLAMA3 = _like_llama3(r"\p{N}{1,3}")
_QWEN2 = _like_llama3(r"\p{N}")
_GPT4O = _like_gpt4o(_CONTRACTIONS + "?", r"\p{N}{1,3}")
_GPT2_NAMES = ("default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "exaone4")
_DIGIT_NAMES = ("smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b")
_LLAMA3_NAMES = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "dbrx", "smaug-bpe")

# tokenizer.ggml.pre -> the regex that cuts text into words; "" is GPT-2's, inside ByteLevel
SPLITS: Mapping[str, str] = {
    **dict.fromkeys(_GPT2_NAMES + _DIGIT_NAMES, ""),
    **dict.fromkeys(_LLAMA3_NAMES, _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "kormo", "stablelm2", "hunyuan"), _QWEN2),
    "qwen35": _like_llama3(r"\p{N}", r"\p{L}\p{M}"),
    "tekken": _like_gpt4o("", r"\p{N}"),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), _GPT4O),
}
_WHOLE_WORDS_FIRST = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")
_NFC = ("qwen2", "deepseek-r1-qwen", "qwen35")

# Control tokens that end a turn whatever `eos_token_id` says (llama.cpp does the same).
_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "<|end_of_text|>")


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2, bytes_to_unicode)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in shown}
    hidden = (byte for byte in range(256) if byte not in letters)
    letters |= {byte: chr(256 + index) for index, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


def read_gguf_source(gguf: Gguf) -> TextSource:
    """The text side of a GGUF file. Raises StartupError, naming the file, for what is missing or not supported."""
    model = gguf.string("tokenizer.ggml.model")
    if model not in _BUILDERS:
        raise StartupError(f"{gguf.path}: tokenizer model '{model}' is not supported; {', '.join(_BUILDERS)} are")
    tokens = gguf.strings("tokenizer.ggml.tokens")
    types = [float(NORMAL)] * len(tokens)
    if "tokenizer.ggml.token_type" in gguf.metadata:
        types = list(gguf.numbers("tokenizer.ggml.token_type"))
    if len(types) != len(tokens):
        raise StartupError(f"{gguf.path}: {len(tokens)} tokens, but {len(types)} token types")
    named = {name: _token_id(gguf, key, len(tokens)) for name, key in _NAMED.items()}
    ends = [named["eos_token"], _token_id(gguf, "eot", len(tokens)), _token_id(gguf, "eom", len(tokens))]
    eos = [index for index in ends if index is not None]
    eos += [index for index, token in enumerate(tokens) if types[index] != NORMAL and token in _END_OF_TURN]
    for index in eos:  # Some files call them ordinary tokens, which users could then write.
        types[index] = CONTROL
    rules = _BUILDERS[model](gguf, tokens, types)
    prefix = "tokenizer.chat_template."
    templates = {key.removeprefix(prefix): gguf.string(key) for key in gguf.metadata if key.startswith(prefix)}
    if "tokenizer.chat_template" in gguf.metadata:
        templates["default"] = gguf.string("tokenizer.chat_template")
    return TextSource(
        path=gguf.path,
        rules=rules,
        templates=templates,
        template_tokens={name: tokens[index] for name, index in named.items() if index is not None},
        eos_token_ids=tuple(dict.fromkeys(eos)),
        context_len=gguf.integer(f"{gguf.string('general.architecture')}.context_length", 0),
    )


_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def _token_id(gguf: Gguf, name: str, num_tokens: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in gguf.metadata:
        return None
    index = gguf.integer(key)
    if not 0 <= index < num_tokens:
        raise StartupError(f"{gguf.path}: key '{key}' is {index}, but there are {num_tokens} tokens")
    return index


def _vocab(gguf: Gguf, tokens: list[str]) -> dict[str, int]:
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocab[token] != index)
        raise StartupError(f"{gguf.path}: broken vocabulary: token {twice!r} appears twice")
    return vocab


def _byte_level(gguf: Gguf, tokens: list[str], types: list[float]) -> Rules:
    alphabet = byte_alphabet()
    known = set(alphabet)
    added = [kind in (CONTROL, USER_DEFINED, UNKNOWN) for kind in types]
    spelled = [
        token if added[index] or known.issuperset(token) else "".join(alphabet[byte] for byte in token.encode())
        for index, token in enumerate(tokens)
    ]
    pre = gguf.string("tokenizer.ggml.pre", "default")
    if pre not in SPLITS:
        raise StartupError(f"{gguf.path}: pre-tokenizer '{pre}' is not supported; {', '.join(sorted(SPLITS))} are")
    steps: list[Rules] = [_byte_level_step(use_regex=not SPLITS[pre])]
    if SPLITS[pre]:
        steps.insert(0, {"type": "Split", "pattern": {"Regex": SPLITS[pre]}, "behavior": "Isolated", "invert": False})
    if pre in _DIGIT_NAMES:
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    model = _bpe(_vocab(gguf, spelled), _listed_merges(gguf), ignore_merges=pre in _WHOLE_WORDS_FIRST)
    return {
        **_document(gguf, tokens, types, add_bos=pre in (*_LLAMA3_NAMES[:4], "tekken")),
        "normalizer": {"type": "NFC"} if pre in _NFC else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": _byte_level_step(use_regex=True),
        "model": model,
    }


def _byte_level_step(*, use_regex: bool) -> Rules:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _sentencepiece(gguf: Gguf, tokens: list[str], types: list[float]) -> Rules:
    gemma = gguf.string("general.architecture").startswith("gemma")
    if gemma:  # Its runs of spaces are stored as real spaces.
        tokens = [SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    vocab = _vocab(gguf, tokens)
    if "tokenizer.ggml.merges" in gguf.metadata:
        merges = _listed_merges(gguf)
    else:
        # Gemma's scores do not follow its merge order; the order of its tokens does.
        scores = [-float(index) for index in range(len(tokens))] if gemma else gguf.numbers("tokenizer.ggml.scores")
        if len(scores) != len(tokens):
            raise StartupError(f"{gguf.path}: {len(tokens)} tokens, but {len(scores)} scores")
        pieces = {token: scores[index] for token, index in vocab.items() if types[index] in (NORMAL, USER_DEFINED)}
        merges = derive_merges(vocab, pieces)
    unknown = _token_id(gguf, "unknown", len(tokens))
    if unknown is None:
        unknown = vocab.get("<unk>")
    steps: list[Rules] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    if gguf.flag("tokenizer.ggml.add_space_prefix", not gemma):
        steps.insert(0, {"type": "Prepend", "prepend": SPACE})
    decoder: list[Rules] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return {
        **_document(gguf, tokens, types, add_bos=True),
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoder},
        "model": _bpe(vocab, merges, byte_fallback=True, unknown=None if unknown is None else tokens[unknown]),
    }


def derive_merges(vocab: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges that make the pieces of `scores` out of two pieces, best score first (a SentencePiece BPE's order)."""
    found: list[tuple[float, int, int, int, int, str, str]] = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                found.append((-score, -len(left), -len(right), vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _listed_merges(gguf: Gguf) -> list[tuple[str, str]]:
    merges = []
    for merge in gguf.strings("tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if not left or not right:
            raise StartupError(f"{gguf.path}: broken vocabulary: merge {merge!r} is not two tokens")
        merges.append((left, right))
    return merges


def _bpe(vocab: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> Rules:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": options.get("unknown"),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": "unknown" in options,
        "byte_fallback": options.get("byte_fallback", False),
        "ignore_merges": options.get("ignore_merges", False),
        "vocab": vocab,
        "merges": [list(merge) for merge in merges],
    }


def _document(gguf: Gguf, tokens: list[str], types: list[float], *, add_bos: bool) -> Rules:
    """The parts of a tokenizer.json that do not depend on the kind of model."""
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[index] != USER_DEFINED,
        }
        for index, token in enumerate(tokens)
        if types[index] in (CONTROL, UNKNOWN) or (types[index] == USER_DEFINED and token.strip(SPACE))
    ]
    ends = [
        _token_id(gguf, name, len(tokens)) if gguf.flag(f"tokenizer.ggml.add_{name}_token", default) else None
        for name, default in (("bos", add_bos), ("eos", False))
    ]
    single: list[Rules] = [{"Sequence": {"id": "A", "type_id": 0}}]
    named = {}
    for place, index in ((0, ends[0]), (2, ends[1])):
        if index is not None:
            single.insert(place, {"SpecialToken": {"id": tokens[index], "type_id": 0}})
            named[tokens[index]] = {"id": tokens[index], "ids": [index], "tokens": [tokens[index]]}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    processor = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": named}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": processor if named else None,
    }


_BUILDERS: Mapping[str, Callable[[Gguf, list[str], list[float]], Rules]] = {"gpt2": _byte_level, "llama": _sentencepiece}
