"""Sentence encoders from a local Hugging Face folder: a module that gives one vector for a sentence, and its tokenizer.

The folder holds config.json, safetensors and a tokenizer; where it is one of sentence-transformers, its modules.json says how
token vectors become one (mean, or that of the first token) and whether it has unit length. Nothing is downloaded, no code of
the folder is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor import foreign
from tersor.errors import DataError, MissingRuntime, ModelError

CONFIG, PARTS, ADAPTER = "config.json", "modules.json", "adapter_config.json"
_DEEPEST = 1000  # layers; no network has more
_COUNTS = re.compile("(layers?|depths?|blocks)$")  # ends of the names of what counts them
_TIMES, _BESIDES = 8, 1 << 30  # the bytes that are stored, and so many besides: more is made of none
_LANGUAGE = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
LENGTH = 64  # tokens of a sentence; shorter ones are padded, longer ones cut
_AGAIN = "download the folder of the encoder again"
_MISSING = "Folders of encoders need transformers; install it: pip install transformers"


class SentenceEncoder(nn.Module):
    """(batch, width) sentence vectors of token ids and their mask, both (batch, tokens) int64."""

    def __init__(self, tokens: nn.Module, first: bool, unit: bool):
        super().__init__()
        self.tokens, self._first, self._unit = tokens, first, unit

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        vectors = self.tokens(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self._first:
            pooled = vectors[:, 0]
        else:
            there = attention_mask[:, :, None].to(vectors.dtype)
            pooled = (vectors * there).sum(1) / there.sum(1).clamp_min(1.0)
        return F.normalize(pooled, dim=-1) if self._unit else pooled


@dataclass(frozen=True)
class Tokenise:
    """Sentences as the arguments of a `SentenceEncoder`, `length` tokens each."""

    tokenizer: Any
    length: int

    def __call__(self, sentences: Sequence[str]) -> dict[str, Tensor]:
        found = self.tokenizer(
            list(sentences), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


def sentence_encoder(path: str | Path, length: int = LENGTH) -> tuple[SentenceEncoder, Tokenise]:
    """The encoder in the folder `path`, and what makes its inputs of sentences.

    Raises `ModelError` where the folder holds no encoder that transformers knows, `MissingRuntime` without transformers.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as cause:
        raise MissingRuntime(_MISSING) from cause
    folder = Path(path)
    config = _json(folder / CONFIG)
    refuse_odd(folder, config)
    if config.get("quantization_config"):
        raise ModelError(f"'{folder}' is already quantized ({CONFIG} says how); give the folder of the float model.")
    kinds = _kinds(config)
    if any(kind.endswith(_LANGUAGE) for kind in kinds):
        raise ModelError(
            f"'{folder}' holds a language model ({', '.join(kinds)}), which only `tersor quantize` takes as a folder. Give the "
            "folder of an encoder, or a function that returns the model (path/to/file.py:function)."
        )
    heads = _heads(kinds)
    if heads and not (folder / PARTS).is_file():  # which would say how the encoder alone gives a vector
        raise ModelError(
            f"'{folder}' holds a network with a head ({', '.join(heads)} in its {CONFIG}), which a sentence encoder would "
            f"drop; bring it as a function, path/to/file.py:function, that returns ({heads[0]}.from_pretrained(...), inputs), "
            "or a folder whose architecture is the encoder alone."
        )
    with foreign.reading(
        f"The encoder and its tokenizer in '{folder}'",
        ModelError,
        "download it again, or bring a function that loads it",
    ):
        _refuse_large(folder)
        tokens, seen = AutoModel.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    lacking = [name for name in seen["missing_keys"] if "pooler" not in name]  # which is not read
    if lacking:
        raise ModelError(
            f"'{folder}' lacks the weights {', '.join(lacking[:3])}, {len(lacking)} in all; download it again."
        )
    unused = [name for name in seen.get("unexpected_keys") or [] if not name.endswith("position_ids")]
    if unused and not (folder / PARTS).is_file():
        raise ModelError(
            f"'{folder}' holds weights that its encoder does not have ({', '.join(sorted(unused)[:3])}, {len(unused)} in all), "
            "such as those of a head, which would be dropped; bring the network as a function, path/to/file.py:function."
        )
    first, unit = _pooling(folder)
    return SentenceEncoder(tokens.eval(), first, unit), Tokenise(tokenizer, length)


def holds_encoder(path: str | Path) -> bool:
    """Whether `path` is the folder of an encoder, with a head or without, rather than of a language model."""
    if not (Path(path) / CONFIG).is_file():
        return False
    kinds = _kinds(_json(Path(path) / CONFIG))
    plain = bool(kinds) and all(kind.endswith("Model") and not kind.endswith("LMHeadModel") for kind in kinds)
    return plain or bool(_heads(kinds)) or (Path(path) / PARTS).is_file()


def _heads(kinds: Sequence[str]) -> list[str]:
    """The architectures that put a head on an encoder, which is not that of a language model."""
    return [kind for kind in kinds if not kind.endswith(("Model", *_LANGUAGE))]


def sentences(path: Path, what: str) -> tuple[list[str], list[float] | None]:
    """Lines of a text file as sentences; of a .tsv file, `score<TAB>sentence<TAB>sentence`, both sentences of every line one
    after the other, and the scores. Raises `DataError` where it cannot be read or holds nothing."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{what} '{path}' cannot be read as UTF-8 text ({cause}); give a text file.") from cause
    if not lines:
        raise DataError(f"{what} '{path}' holds no sentence; write one in a line.")
    if path.suffix != ".tsv":
        return lines, None
    found: list[str] = []
    scores: list[float] = []
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        try:
            scores.append(float(fields[0]))
            found += [fields[1], fields[2]]
        except (ValueError, IndexError) as cause:
            raise DataError(
                f"{what} '{path}', line {number} is {line[:60]!r}; wanted score, sentence, sentence with tabs between."
            ) from cause
    return found, scores


def as_arrays(data: Any, tokenise: Tokenise, what: str, scored: bool) -> Any:
    """Sentences (a .txt or .tsv file, or a list of strings) as arrays for `inputs.data`; anything else as it is.

    scored: with labels (items, 2) where the file has scores: the number of the pair that a sentence belongs to, and its score.
    """
    scores: list[float] | None = None
    if isinstance(data, str | Path) and str(data).endswith((".txt", ".tsv")):
        found, scores = sentences(Path(data), what)
    elif isinstance(data, Sequence) and not isinstance(data, str) and data and all(isinstance(s, str) for s in data):
        found = list(data)
    else:
        return data
    made = tokenise(found)
    if scored and scores is not None:
        each = torch.tensor(scores, dtype=torch.float64).repeat_interleave(2)
        made["labels"] = torch.stack([torch.arange(len(each)) // 2, each], 1).float()
    return made


def _pooling(folder: Path) -> tuple[bool, bool]:
    """(whether the first token stands for the sentence, whether vectors have unit length)."""
    if not (folder / PARTS).is_file():
        return False, False
    first = unit = False
    parts = foreign.json_in(folder / PARTS, "list of modules", ModelError, _AGAIN)
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ModelError(f"'{folder / PARTS}' holds no list of modules; {_AGAIN}.")
    for part in parts:
        kind = str(part.get("type", "")).rpartition(".")[2]
        if kind == "Normalize":
            unit = True
        elif kind == "Pooling":
            place = Path(str(part.get("path", ""))).name
            if place in ("", ".."):
                raise ModelError(f"'{folder / PARTS}' names no folder of the module {kind}; {_AGAIN}.")
            settings = _json(folder / place / CONFIG)
            first = bool(settings.get("pooling_mode_cls_token"))
            if not first and not settings.get("pooling_mode_mean_tokens"):
                chosen = [key for key, value in settings.items() if key.startswith("pooling_mode") and value]
                raise ModelError(
                    f"'{folder}' pools by {', '.join(chosen) or 'nothing'}; only mean and cls_token are supported."
                )
        elif kind != "Transformer":
            raise ModelError(
                f"'{folder}' ends in a module of the kind {kind!r}; bring the model as a function instead."
            )
    return first, unit


def refuse_odd(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise `ModelError` where a configuration asks for layers without end, each of which takes memory before any is looked for
    in the folder, or for kernels that transformers would fetch and run; and where an adapter names a network elsewhere."""
    if (folder / ADAPTER).exists():
        raise ModelError(
            f"'{folder}' holds an adapter ({ADAPTER}) of another network; merge the two, and bring what comes out."
        )
    left: list[tuple[str, Any]] = [("", config)]
    while left:
        name, value = left.pop()
        computed = name.lstrip("_").startswith(("attn_implementation", "experts_implementation"))
        if isinstance(value, Mapping):
            left += [(name if computed else str(key), each) for key, each in value.items()]
        elif isinstance(value, list):
            left += [(name, each) for each in value]
        elif type(value) is int and value > _DEEPEST and _COUNTS.search(name.lower()):
            raise ModelError(f"'{folder / CONFIG}' says {name}: {value}, and no network is as deep as that; {_AGAIN}.")
        elif computed and isinstance(value, str) and ("/" in value or value.startswith("flash")):
            raise ModelError(
                f"'{folder / CONFIG}' says {name}: {value[:80]!r}, code that is not here; write eager or take it out."
            )


def _refuse_large(folder: Path) -> None:
    """Raise `ModelError` where the network that the configuration describes is far larger than the weights in the folder."""
    from transformers import AutoConfig, AutoModel

    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    try:
        with torch.device("meta"):  # where nothing takes memory
            bare = AutoModel.from_config(config, trust_remote_code=False)
    except Exception:  # some cannot be made there
        return
    wanted = sum(t.numel() * t.element_size() for t in (*bare.parameters(), *bare.buffers()))
    if wanted > _TIMES * stored + _BESIDES:
        raise ModelError(
            f"'{folder / CONFIG}' describes a network of {wanted / 1e9:.3g} GB, and the folder holds {stored / 1e9:.3g} GB of "
            f"weights; {_AGAIN}."
        )


def _kinds(config: dict[str, Any]) -> list[str]:
    found = config.get("architectures") or []
    return [str(kind) for kind in found] if isinstance(found, list) else [str(found)]


def _json(path: Path) -> dict[str, Any]:
    found = foreign.json_in(path, "configuration", ModelError, _AGAIN)
    if not isinstance(found, dict):
        raise ModelError(f"'{path}' holds a {type(found).__name__}; wanted a JSON object.")
    return found
