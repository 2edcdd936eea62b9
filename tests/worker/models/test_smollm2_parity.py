"""SmolLM2-135M-Instruct, the default model, from its Q4_1 GGUF file against transformers 5 with the same numbers.

The reference's numbers are unpacked by the gguf package. Greedy equality is checked by feeding our tokens back:
the reference, shown prompt and output, must choose each output token itself; by induction it would have written them.
"""

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import kernels
from services.launcher.pull import find_or_fetch
from services.tokenizer import vocab
from services.worker.models import Model, build
from shared.config import DEFAULT_MODEL
from shared.gguf import read_gguf
from tests.worker.models.gguf_files import gguf_name
from tests.worker.models.paged import PagedLoop, greedy

NUM_TOKENS = 64
TOLERANCE = 5e-4  # of logits up to 30, after 30 layers
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a haiku about trucks.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nExplain photosynthesis to a child.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nList five uses for a brick.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nTranslate 'good morning' into Spanish.<|im_end|>\n<|im_start|>assistant\n",
    "In 1969, the first human",
    "The recipe needs flour, eggs and",
    "SELECT name, age FROM",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: What is 12 times 12?\nA:",
    "The three laws of robotics are",
    "import numpy as np\n\nx = np.",
    "Water boils at",
    "Roses are red, violets are blue,",
    "She opened the door and saw",
    "Chapter 1\n\nIt was",
    "The largest planet in our solar system",
]


@pytest.fixture(scope="module")
def model(ops: kernels.Ops) -> Model:
    return build(find_or_fetch(DEFAULT_MODEL), ops)


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    """transformers' model with the file's numbers, its pairs of query and key rows put back into halves."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    header = read_gguf(find_or_fetch(DEFAULT_MODEL))
    data = np.memmap(header.path, mode="r")
    heads = {"attn_q": 9, "attn_k": 3}
    state = {}
    for name in model.state_dict():
        tensor = header.tensors[gguf_name("model.embed_tokens.weight" if name == "lm_head.weight" else name, "llama")]
        packed = data[tensor.offset : tensor.offset + tensor.num_bytes].reshape(tensor.shape[0], -1)
        rows = torch.tensor(gguf.dequantize(packed, gguf.GGMLQuantizationType[tensor.type])).reshape(tensor.shape)
        part = tensor.name.split(".")[-2]
        if part in heads:
            rows = rows.reshape(heads[part], 32, 2, -1).swapaxes(1, 2).reshape(rows.shape)
        state[name] = rows
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    return model


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    vocabulary = vocab.load(find_or_fetch(DEFAULT_MODEL))
    return [list(vocabulary.encode(prompt, add_special_tokens=False)) for prompt in PROMPTS]


def truth(reference: PreTrainedModel, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        return reference(torch.tensor([tokens]), use_cache=False).logits[0]


@pytest.mark.timeout(300)
def test_logits_and_64_greedy_tokens_on_20_prompts(model: Model, reference: PreTrainedModel, prompts: list[list[int]]) -> None:
    outputs = greedy(model, prompts, NUM_TOKENS)
    for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        expected = truth(reference, prompt + output[:-1])
        assert output == expected[len(prompt) - 1 :].argmax(-1).tolist(), PROMPTS[index]
        if index < 4:
            got = PagedLoop(model, 1, len(prompt) + NUM_TOKENS).step({0: prompt + output[:-1]}, every=True)
            torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_what_the_worker_is_told(model: Model) -> None:
    assert (model.num_layers, model.spec.num_kv_heads, model.spec.head_dim) == (30, 3, 64)
    assert (model.max_model_len, model.spec.vocab_size, model.spec.tied) == (8192, 49152, True)
    assert set(model.eos_token_ids) == {0, 2}  # <|endoftext|>, <|im_end|>
    assert model.formats == ("F32", "Q4_1", "Q8_0")
