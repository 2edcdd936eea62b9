"""Small tokenizers, trained on the spot and written as the files the service reads. It knows nothing of the service."""

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.shared.gguf_writer import Entry, write_gguf

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on in the warm sun.",
    "A tokenizer turns text into numbers; numbers turn into text again when the model has spoken.",
    "for index in range(10): print(index, index * index)  # squares of numbers",
    "Größe, café, naïve; 日本語のテキスト, русский текст, 한국어 문장, emoji 😀🎉 and more text.",
    "user assistant system hello world, hello there, what is the capital of France? Paris.",
] * 4
SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _bos(tokenizer: Tokenizer) -> None:
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)])


@functools.cache
def byte_level() -> str:
    """tokenizer.json of a byte-level BPE that adds <s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<tool>"])
    _bos(tokenizer)
    return tokenizer.to_str()


@functools.cache
def sentencepiece_bpe() -> str:
    """tokenizer.json of a SentencePiece-like BPE: Metaspace, byte fallback, <s> added, no unknown characters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIALS, show_progress=False, max_token_length=8)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _bos(tokenizer)
    rules = json.loads(tokenizer.to_str())
    vocab = rules["model"]["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    rules["model"]["byte_fallback"] = True
    return json.dumps(rules)


@functools.cache
def unigram() -> str:
    """tokenizer.json of a Unigram vocabulary with Metaspace."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


KINDS = {"byte_level": byte_level, "sentencepiece_bpe": sentencepiece_bpe, "unigram": unigram}


def write_hf(path: Path, tokenizer_json: str, *, template: str | None = TEMPLATE, **config: Any) -> Path:
    """A model directory, without weights; `config` goes into tokenizer_config.json."""
    path.mkdir(exist_ok=True)
    stated = {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}, "chat_template": template, **config}
    (path / "tokenizer.json").write_text(tokenizer_json)
    (path / "tokenizer_config.json").write_text(json.dumps(stated))
    (path / "config.json").write_text(json.dumps({"max_position_embeddings": 2048, "eos_token_id": 2}))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 2]}))
    return path


def gguf_metadata(kind: str, **changes: Entry) -> dict[str, Entry]:
    """The metadata of a GGUF file with the vocabulary of `kind` (byte_level or sentencepiece_bpe); SPECIALS are control."""
    rules = json.loads(KINDS[kind]())
    vocab = dict(rules["model"]["vocab"])
    vocab |= {token["content"]: token["id"] for token in rules["added_tokens"]}
    tokens = sorted(vocab, key=lambda token: vocab[token])
    types = [3 if token in SPECIALS else 4 if token == "<tool>" else 6 if token.startswith("<0x") else 1 for token in tokens]
    metadata: dict[str, Entry] = {
        "general.architecture": "llama",
        "llama.context_length": 512,
        "tokenizer.ggml.model": "gpt2" if kind == "byte_level" else "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }
    if kind == "byte_level":
        metadata["tokenizer.ggml.pre"] = "gpt-2"
        metadata["tokenizer.ggml.add_bos_token"] = True
        metadata["tokenizer.ggml.merges"] = [" ".join(merge) for merge in rules["model"]["merges"]]
    else:
        ranks = {left + right: rank for rank, (left, right) in reversed(list(enumerate(rules["model"]["merges"])))}
        metadata["tokenizer.ggml.scores"] = [-1.0 - ranks.get(token, 10_000) for token in tokens]
    return {**metadata, **changes}


def write_vocab_gguf(path: Path, kind: str, **changes: Entry) -> Path:
    """A GGUF file with no tensors."""
    return write_gguf(path, gguf_metadata(kind, **changes))
