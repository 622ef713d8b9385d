"""Sentence encoders from a folder: what the vectors are, what is refused, and the commands on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

import tersor
from tersor.errors import DataError, MetricError, ModelError
from tersor.inputs.encoder import holds_encoder, sentence_encoder, sentences
from tersor.measuring.batches import Batch, Batches
from tersor.measuring.scores import spearman

WORDS = tuple("a man woman dog cat plays runs sleeps the guitar piano ball in park on street two".split())  # noqa: SIM905


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of random weights, as sentence-transformers would write it."""
    path = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    BertModel(config).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(vocabulary))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    kinds = [{"idx": i, "path": p, "type": f"sentence_transformers.models.{t}"} for i, (p, t) in enumerate(parts)]
    (path / "modules.json").write_text(json.dumps(kinds))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return path


def written(path: Path, count: int = 60, seed: int = 0) -> Path:
    """Pairs of sentences; the score is how many words they share."""
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        a = random.choice(WORDS, 6)
        b = np.where(random.random(6) < random.random(), a, random.choice(WORDS, 6))
        lines.append(f"{int((a == b).sum())}\t{' '.join(a)}\t{' '.join(b)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_vectors_are_means_of_the_tokens_that_are_there(folder: Path):
    module, tokenise = sentence_encoder(folder, 12)
    inputs = tokenise(["a dog runs", "two cat"])
    assert inputs["input_ids"].shape == (2, 12)
    given = module(**inputs)
    hidden = module.tokens(**inputs).last_hidden_state
    mean = torch.stack([h[: int(m.sum())].mean(0) for h, m in zip(hidden, inputs["attention_mask"], strict=True)])
    torch.testing.assert_close(given, mean / mean.norm(dim=1, keepdim=True))
    assert holds_encoder(folder)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Sentences to calibrate on, and pairs to judge by."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(sentences(written(tmp_path / "more.tsv", 60, 1), "DATA")[0]))
    return text, written(tmp_path / "pairs.tsv", 60)


def test_quantize_takes_the_folder(folder: Path, files: tuple[Path, Path]):
    text, pairs = files
    found = tersor.quantize(folder, str(text), weights=4, groups=32, metric="spearman", eval_data=pairs)
    assert isinstance(found, tersor.Quantized)
    assert isinstance(found.before, float)
    assert 0.3 < found.before <= 1
    assert abs(found.drop.amount) < 0.1


@pytest.mark.slow
def test_compress_takes_the_folder(folder: Path, files: tuple[Path, Path], tmp_path: Path):
    text, pairs = files
    report = tersor.compress(
        folder,
        text,
        eval_data=str(pairs),
        metric="spearman",
        max_drop=0.05,
        target="onnxruntime",
        out=tmp_path / "small",
        threads=1,
    )
    assert report.before.score[""] - report.after.score[""] <= 0.05
    runner = tersor.load(tmp_path / "small")
    ids = sentence_encoder(folder)[1](["a dog runs"])
    assert runner.predict(ids["input_ids"].numpy(), ids["attention_mask"].numpy())[0].shape == (1, 32)


def test_a_rank_correlation_pairs_what_belongs_together():
    random = np.random.default_rng(0)
    vectors, score = random.normal(size=(40, 5)), random.random(20)
    labels = np.stack([np.arange(40) // 2, score.repeat(2)], 1)
    near = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    ranks = [np.argsort(np.argsort(v)) for v in (near, score)]
    expected = np.corrcoef(*ranks)[0, 1]
    order = random.permutation(40)
    for some in (np.arange(40), order):
        data = Batches((Batch((torch.tensor(vectors[some]),), torch.tensor(labels[some])),))
        assert spearman(lambda x: x, data) == pytest.approx(expected)
    lone = Batches((Batch((torch.tensor(vectors[::2]),), torch.tensor(labels[::2])),))
    with pytest.raises(MetricError, match="0 whole pairs were found"):
        spearman(lambda x: x, lone)
    with pytest.raises(MetricError, match=r"labels \(pair, score\) of each item; the labels have the shape \(40, 3\)"):
        spearman(lambda x: x, Batches((Batch((torch.tensor(vectors),), torch.zeros(40, 3)),)))


def test_bad_folders_are_refused(folder: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="There is no configuration"):
        sentence_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert not holds_encoder(tmp_path)
    with pytest.raises(ModelError, match="holds a language model"):
        tersor.compress(tmp_path, "x.txt", metric="cosine", max_drop=0.1, out=tmp_path / "out")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "model_type": "bert"}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks the weights .*, 197 in all"):
        sentence_encoder(tmp_path)
    for name in ("config.json", "vocab.txt", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense", "path": "2"}]))
    with pytest.raises(ModelError, match="module of the kind 'Dense'"):
        sentence_encoder(tmp_path)


def test_bad_text_is_named(tmp_path: Path):
    (tmp_path / "a.tsv").write_text("3.5\ta dog\ta cat\nhigh\ta\tb\n")
    with pytest.raises(DataError, match=r"line 2 is 'high\\ta\\tb'; wanted score, sentence, sentence"):
        sentences(tmp_path / "a.tsv", "DATA")
    (tmp_path / "b.txt").write_text("\n \n")
    with pytest.raises(DataError, match="holds no sentence"):
        sentences(tmp_path / "b.txt", "DATA")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        sentences(tmp_path / "c.txt", "DATA")


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertForTokenClassification", "BertForMaskedLM"])
def test_a_head_is_never_dropped(kind: str, folder: Path, tmp_path: Path):
    import transformers

    config = BertConfig.from_pretrained(folder)
    getattr(transformers, kind)(config).save_pretrained(tmp_path)
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    said = rf"a head \({kind} in its config.json\).*bring it as a function.*{kind}.from_pretrained"
    with pytest.raises(ModelError, match=said):
        sentence_encoder(tmp_path)
    with pytest.raises(ModelError, match=said):
        tersor.quantize(tmp_path, "x.txt", metric="cosine", weights=8)
    changed = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["BertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ModelError, match=r"weights that its encoder does not have \(cl.*would be dropped"):
        sentence_encoder(tmp_path)
    for name in ("modules.json", "1_Pooling/config.json"):  # which say that the encoder alone is meant
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    changed |= {"architectures": [kind]}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    module, tokenise = sentence_encoder(tmp_path)
    assert module(**tokenise(["a dog"])).shape == (1, 32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 10**9}, "says num_hidden_layers: 1000000000, and no network is as deep"),
        ({"vision": {"depths": [2, 10**9]}}, "says depths: 1000000000"),
        ({"vocab_size": 10**10}, "describes a network of"),
        ({"max_position_embeddings": 10**12}, "describes a network of"),
        (
            {"_attn_implementation": "somebody/kernel"},
            "says _attn_implementation: 'somebody/kernel', code that is not here",
        ),
        ({"attn_implementation": {"": "paged|somebody/kernel"}}, "code that is not here"),
        ({"quantization_config": {"quant_method": "awq"}}, "is already quantized"),
    ],
)
def test_a_configuration_that_would_fill_the_memory_or_run_code(
    folder: Path, tmp_path: Path, change: dict, said: str
) -> None:
    copy = tmp_path / "encoder"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text()) | change
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said):
        sentence_encoder(copy)


def test_an_adapter_of_another_network_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "encoder"
    shutil.copytree(folder, copy)
    (copy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))
    with pytest.raises(ModelError, match="holds an adapter"):
        sentence_encoder(copy)
