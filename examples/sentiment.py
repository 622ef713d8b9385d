"""Teach a small LSTM what a transformer knows about the mood of sentences, then make it fast on this machine.

    python examples/sentiment.py                                          # sentences of a small grammar
    python examples/sentiment.py --model FOLDER --sentences FILE.tsv      # yours; needs transformers

FOLDER is a Hugging Face encoder, of which the last layers are trained first; FILE has a line `sentence<TAB>0 or 1` for each
sentence. Teacher and student take token ids (sentences, LENGTH), 0 for padding, and give two scores; the student is trained
twice, on the same sentences: from their labels alone, and from its teacher alone. A tenth of the labels of the small grammar
are wrong: the teacher sees enough sentences not to mind.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tersor

LENGTH = 40
THINGS = ("film", "plot", "cast", "end", "music")
GOOD, BAD = ("good", "great", "fine", "lovely", "clever", "funny"), ("bad", "dull", "poor", "awful", "silly", "boring")


class Classifier(nn.Module):
    """Two scores of the mean of an encoder's token vectors."""

    def __init__(self, encoder: nn.Module, width: int):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        there = ids != 0
        vectors = self.encoder(ids, there.long())[0] * there[:, :, None]
        return self.head(vectors.sum(1) / there.sum(1, keepdim=True))


class Student(nn.Module):
    """Word vectors, one LSTM that reads both ways, the largest of what it says about any word."""

    def __init__(self, table: Tensor, width: int = 64, hidden: int = 64):
        """table: word vectors of the teacher (words, its width), whose main directions the student begins with."""
        super().__init__()
        self.words = nn.Embedding(len(table), width)
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 2)
        centered = table.detach() - table.detach().mean(0)
        main = centered @ torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -width:]
        self.words.weight.data = 0.3 * main / main.std()

    def forward(self, ids: Tensor) -> Tensor:
        said = self.lstm(self.words(ids))[0]
        return self.head(said.masked_fill(ids[:, :, None] == 0, -1.0).amax(1))


class Transformer(nn.Module):
    """A small encoder of our own, called as those of Hugging Face are."""

    def __init__(self, words: int, width: int = 128):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: Tensor, there: Tensor) -> tuple[Tensor]:
        x = self.words(ids) + self.places.weight[: ids.shape[1]]
        return (self.layers(x, src_key_padding_mask=there == 0),)


def pretrained(folder: str | Path, layers: int = 3) -> tuple[Classifier, Tensor, Any]:
    """A Hugging Face encoder of which the last so many layers are free, its word vectors, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    encoder = AutoModel.from_pretrained(folder, local_files_only=True)
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    for parameter in encoder.encoder.layer[-layers:].parameters():
        parameter.requires_grad_(True)
    words = encoder.get_input_embeddings().weight
    return Classifier(encoder, words.shape[1]), words, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def tokenized(tokenize: Any, sentences: list[str]) -> Tensor:
    """(sentences, LENGTH) ids, cut or filled up."""
    found = tokenize(sentences, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return found["input_ids"]


def train(teacher: Classifier, x: Tensor, y: Tensor, epochs: int = 2, rate: float = 1e-4) -> None:
    """Plain training, 32 sentences of about the same length at a time."""
    parts = [(teacher.encoder, rate), (teacher.head, 1e-3)]
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in part.parameters() if p.requires_grad], "lr": lr} for part, lr in parts]
    )
    length = (x != 0).sum(1)
    batches = (length + torch.rand(len(x))).argsort().split(32)
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(10 * n, steps - n) / steps)
    teacher.train()
    for epoch in range(epochs):
        for at in torch.randperm(len(batches)).tolist():
            batch = batches[at]
            optimizer.zero_grad()
            F.cross_entropy(teacher(x[batch, : int(length[batch].max())]), y[batch]).backward()
            nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(f"teacher: epoch {epoch + 1} of {epochs}", flush=True)
    teacher.eval()


def made_up(count: int, wrong: float = 0.0) -> tuple[list[str], list[int]]:
    """Sentences whose last clause decides, by an adjective that "not" turns around, and their labels, so many of them wrong."""
    sentences, labels = [], []
    for _ in range(count):
        clauses = []
        for _ in range(random.choice((1, 2, 2, 3))):
            good, turned = random.random() < 0.5, random.random() < 0.4
            words = ["the", random.choice(THINGS), "is", *["not"] * turned, *["very"] * random.randrange(3)]
            clauses.append(" ".join([*words, random.choice(GOOD if good else BAD)]))
        sentences.append(" but ".join(clauses))
        labels.append(int((good != turned) != (random.random() < wrong)))
    return sentences, labels


def numbered(sentences: list[str]) -> Tensor:
    """The words of `made_up` as ids, 0 after the end."""
    known = {word: number for number, word in enumerate(("but", "the", "is", "not", "very", *THINGS, *GOOD, *BAD), 1)}
    ids = torch.zeros(len(sentences), LENGTH, dtype=torch.long)
    for row, sentence in zip(ids, sentences, strict=True):
        words = [known[word] for word in sentence.split()]
        row[: len(words)] = torch.tensor(words)
    return ids


def milliseconds(module: Any, ids: Tensor) -> float:
    """Of one sentence, the median of 20."""
    spent = []
    with torch.no_grad():
        for sentence in ids[:20].split(1):
            start = time.perf_counter()
            module(sentence)
            spent.append(1000 * (time.perf_counter() - start))
    return sorted(spent)[10]


def main() -> None:
    """Train a teacher, a student without it and one with it, and compress the latter."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", help="folder of an encoder")
    options.add_argument("--sentences", help="file of sentence<TAB>label; the last eighth judges")
    given = options.parse_args()
    if bool(given.model) != bool(given.sentences):
        options.error("--model and --sentences belong together")
    torch.manual_seed(0)
    random.seed(0)
    if given.model:
        teacher, table, tokenize = pretrained(given.model)
        lines = [line.rsplit("\t", 1) for line in Path(given.sentences).read_text("utf-8").splitlines()]
        random.shuffle(lines)
        x, y = tokenized(tokenize, [s for s, _ in lines]), torch.tensor([int(label) for _, label in lines])
        seen = shown = len(x) * 7 // 8
        train(teacher, x[:seen], y[:seen])
        epochs, rate = 6, 1e-3
    else:
        seen, shown = 4000, 600  # sentences that the teacher sees, and those of them that the student is shown
        (sentences, labels), (judging, truth) = made_up(seen, wrong=0.1), made_up(1000)
        x, y = numbered(sentences + judging), torch.tensor(labels + truth)
        encoder = Transformer(int(x.max()) + 1)
        teacher, table = Classifier(encoder, encoder.words.embedding_dim), encoder.words.weight
        train(teacher, x[:seen], y[:seen], epochs=5, rate=1e-3)
        epochs, rate = 15, 3e-3
    data, held = list(zip(x[:shown].split(100), y[:shown].split(100), strict=True)), [(x[seen:], y[seen:])]
    for name, loss in (("without its", "cross_entropy"), ("with its", "kl(temperature=4)")):
        torch.manual_seed(0)
        how = tersor.Recovery.of(f"{epochs}epochs", loss, rate, "adamw", batch=64, decay=0.01)
        found = tersor.distil(
            Student(table).eval(), data, teacher=teacher, recover=how, eval_data=held, out="student.pt2"
        )
        print(f"accuracy: teacher {found.before:.3f}, student {name} teacher {found.after:.3f}", flush=True)
    big, small = found.parameters
    times = [milliseconds(module, x) for module in (teacher, found.module)]
    print(f"{big:,} parameters become {small:,}, {times[0]:.2f} ms a sentence {times[1]:.2f} ms in torch", flush=True)
    report = tersor.compress(
        "student.pt2", data, eval_data=held, max_drop="1%", target="onnxruntime,openvino", out="small"
    )
    print(report.to_text())


if __name__ == "__main__":
    main()
