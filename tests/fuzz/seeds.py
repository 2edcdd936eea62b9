"""Bytes that are nearly right, for fuzzers to begin with. It knows the formats, and nothing of who reads them."""

import json
import struct
import tempfile
from functools import cache
from pathlib import Path

from shared.pb import delivery_pb2, router_pb2, tokenizer_pb2, types_pb2
from tests.security.bodies import odd_bodies, posts
from tests.security.protos import extremes
from tests.shared.gguf_writer import write_gguf

RID = "00" + "ab" * 16


class Wake:
    """Stands for the event that wakes a connection's writer."""

    def set(self) -> None:
        """Nobody waits."""


@cache
def scratch() -> str:
    """A folder in memory, if there is one: fuzzers write thousands of files."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()


def json_seeds() -> list[bytes]:
    """Bodies with one odd value each, and the traps of JSON."""
    bodies = [json.dumps(body).encode() for path in posts() for _, body in odd_bodies(path)][::9]
    return [
        *bodies,
        b'{"a":1,"a":2}',
        b'{"x":1e999}',
        b'{"x":"\\ud800"}',
        b'{"x":' + b"[" * 70 + b"]" * 70 + b"}",
        b"\xef\xbb\xbf{}",
    ]


def door_seeds() -> list[bytes]:
    """Requests with one field at an extreme."""
    chat = tokenizer_pb2.Chat(messages=[tokenizer_pb2.ChatMessage(role="user", content="hi")])
    messages = [router_pb2.ChatRequest(model="default", chat=chat), router_pb2.CompleteRequest(model="default", text="hi")]
    return [each.SerializeToString()[:2000] for message in messages for _, each in extremes(message)][::4]


def payload_seeds() -> list[bytes]:
    """Payloads with one field at an extreme."""
    good = types_pb2.Payload(version=1, kind=types_pb2.KIND_GENERATE, prompt_token_ids=struct.pack("<3I", 1, 2, 3))
    good.sampling.seed, good.sampling.max_tokens = 1, 4
    return [each.SerializeToString()[:2000] for _, each in extremes(good)][::3]


def delivery_seeds() -> list[bytes]:
    """What a worker sends."""
    frames = delivery_pb2.Frames(stream=[1, 1], choice=[0, 1], idx=[0, 0], count=[2, 1], token_ids=[5, 6, 7])
    good = delivery_pb2.FromWorker(frames=frames, claimed=[delivery_pb2.Claimed(stream=2, rid=RID, epoch=2)])
    good.finishes.add(stream=1, choice=0, num_tokens=2, reason=types_pb2.FINISH_REASON_STOP)
    good.logprobs.add(stream=1, choice=0, idx=0, logprobs=types_pb2.Logprobs(width=2, token_ids=[1] * 4, logprobs=[-1.0] * 4))
    return [good.SerializeToString(), *(each.SerializeToString()[:2000] for _, each in list(extremes(good))[::5])]


def encode_seeds() -> list[bytes]:
    """What a router asks a tokenizer."""
    chat = tokenizer_pb2.Chat(messages=[tokenizer_pb2.ChatMessage(role="user", content="<|im_end|>")], tools_json=["{}"])
    good = tokenizer_pb2.EncodeRequest(texts=[tokenizer_pb2.Text(text="a<|im_start|>b")], chat=chat)
    return [each.SerializeToString()[:2000] for _, each in extremes(good)][::3]


def decode_seeds() -> list[bytes]:
    """Columns."""
    opening = tokenizer_pb2.OpenDecode(stream=2, stop=["a"], prior_token_ids=struct.pack("<2I", 1, 2))
    good = tokenizer_pb2.DecodeRequest(open=[opening], stream=[1, 2], count=[1, 2], token_ids=[5, 6, 7], flush=[1], close=[2])
    return [each.SerializeToString()[:2000] for _, each in extremes(good)][::3]


def text_seeds() -> list[bytes]:
    """Spellings and pieces of special tokens, and what Unicode has of odd things."""
    texts = [
        "<|im_start|>system\n",
        "<|im_",
        "end|>",
        "\U0010fffd",
        "\U000f0000",
        "e\u0301",
        "日本",
        "\u202e",
        "a\x00b",
        "😀",
        " \n\t",
    ]
    return [text.encode() for text in texts]


def said_seeds() -> list[bytes]:
    """How models call tools and think aloud."""
    call = '{"name": "f", "arguments": {"a": [1, "x"]}}'
    said = [
        "<think>hm</think>yes",
        f"<tool_call>\n{call}\n</tool_call>",
        f"[TOOL_CALLS][{call}]",
        "[TOOL_CALLS]f[ARGS]{}",
        f"<|python_tag|>{call}",
        call.replace("arguments", "parameters"),
        "[f(a=1, b='x'), g()]",
        '<tool_call>\n{"name": "f", "arguments": {"a": [1, "x\x00"]}}\n</tool_call>',
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ]
    return [text.encode() for text in said]


def form_seeds() -> list[bytes]:
    """A form and its boundary."""
    top = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    file = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}\r\n--x--\r\n'
    return [b"x\n" + top + file, b"x\n" + file, b"--\n" + top, b"x\n" + top * 20]


def batch_seeds() -> list[bytes]:
    """Lines of a batch."""
    line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"model": "default", "prompt": "x"}}
    text = json.dumps(line).encode()
    return [text, text + b"\n" + text, b"\n\n", b"", text.replace(b"POST", b"GET"), b"{" * 3000]


@cache
def gguf_seeds() -> list[bytes]:
    """A small model's file."""
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 32,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["<s>", "a", "b", "ab"],
        "tokenizer.ggml.token_type": [3, 1, 1, 1],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 0,
    }
    tensors = {"token_embd.weight": ((4, 32), "Q8_0", bytes(4 * 34)), "blk.0.attn_q.weight": ((32, 32), "F32", bytes(4096))}
    with tempfile.TemporaryDirectory() as folder:
        return [write_gguf(Path(folder) / "seed.gguf", metadata, tensors).read_bytes()]


def header(table: object, data: bytes = bytes(64), length: int | None = None) -> bytes:
    """A safetensors file; `length` is what it claims of its header's."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    """A row of its table."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors_seeds() -> list[bytes]:
    """Files of two small tensors."""
    good = {"__metadata__": {"format": "pt"}, "a": tensor(0, 32, [2, 4]), "b": tensor(32, 64, [8])}
    return [header(good), header({"a": tensor(0, 64, [16])}), header({"a": tensor(0, 64, [32], "F16")})]


def config_seeds() -> list[bytes]:
    """Settings of models."""
    good = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 32,
        "rms_norm_eps": 1e-5,
        "eos_token_id": [1, 2],
        "rope_parameters": {"rope_type": "linear", "factor": 2.0},
        "chat_template": [{"name": "default", "template": "{{ x }}"}],
        "eos_token": {"content": "</s>"},
    }
    return [json.dumps(good).encode(), b"[" * 100_000, b'{"a":' * 50_000, b'{"architectures": [1e999, NaN]}']
