"""Text for a language model, as token ids: what a user brings, or what the model draws itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor import foreign
from tersor.errors import DataError, MissingRuntime, ModelError
from tersor.inputs import arrays, functions
from tersor.language.folder import Folder

ITSELF = "itself"
KEYS = ("input_ids", "ids", "tokens", "x", "inputs")
DRAWN, WINDOW = 160, 128  # windows, and tokens in each, that a model draws
TOGETHER = 32  # windows drawn at once


def bring(data: Any, vocabulary: int, what: str = "DATA") -> list[Tensor]:
    """Batches (windows, positions) of int64 token ids below `vocabulary`.

    data: an .npz or .npy file of ids, `file.py:function` that returns an iterable of batches, or, in Python, that iterable, a
    function that returns it, or an array. A batch is an array of ids or a dict that holds one as `input_ids`.
    Raises `DataError` where there is nothing, no integers, or ids that the vocabulary does not have.
    """
    name = str(data) if isinstance(data, str | Path) else functions.origin(data)
    batches = [_ids(batch, f"{what} {name}") for batch in _batches(data, name, what)]
    if not batches:
        raise DataError(f"{what} {name} gave no batches; give at least one batch of token ids.")
    for ids in batches:
        if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
            wrong = ids[(ids < 0) | (ids >= vocabulary)]
            raise DataError(
                f"{what} {name} holds the token id {int(wrong[0])}; the model's vocabulary has ids 0 to {vocabulary - 1}. Use "
                "the tokenizer of this model."
            )
    return batches


@torch.no_grad()
def drawn(folder: Folder, seed: int, windows: int = DRAWN, length: int = WINDOW) -> list[Tensor]:
    """Windows of text that the model draws itself, from its first token on; the whole model is in memory meanwhile.

    Same seed, same text. Raises `DataError` where the model has no token to begin with.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as cause:
        raise MissingRuntime(
            "Folders of language models need transformers; install it: pip install transformers"
        ) from cause
    first = folder.config.get("bos_token_id")
    first = first[0] if isinstance(first, list) and first else first
    if not isinstance(first, int):
        raise DataError(
            f"config.json of {folder.path} names no bos_token_id, so the model cannot begin a text itself; give token ids as "
            "DATA."
        )
    with foreign.reading(f"The model in '{folder.path}'", ModelError, "download it again"):
        model = AutoModelForCausalLM.from_pretrained(
            str(folder.path), trust_remote_code=False, local_files_only=True, use_safetensors=True
        ).eval()
    length = min(length, int(folder.config.get("max_position_embeddings") or length))
    draw = torch.Generator().manual_seed(seed)
    return [_drawn(model, first, min(TOGETHER, windows - done), length, draw) for done in range(0, windows, TOGETHER)]


def split(batches: list[Tensor], seed: int, share: float = 0.2) -> tuple[list[Tensor], list[Tensor]]:
    """(calibration, evaluation): disjoint windows, seeded. Raises `DataError` for fewer than two windows."""
    windows = [ids[i : i + 1] for ids in batches for i in range(len(ids))]
    if len(windows) < 2:
        raise DataError("There is one window of text; at least two are needed, one to calibrate and one to judge on.")
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, round(share * len(windows)))
    return [windows[i] for i in sorted(order[count:])], [windows[i] for i in sorted(order[:count])]


def gathered(batches: Iterable[Tensor], tokens: int) -> list[Tensor]:
    """The same windows in the same order, those of one length together, at most `tokens` ids (but a window) a piece."""
    found: list[Tensor] = []
    for ids in batches:
        for window in ids.split(1):
            fits = bool(found) and found[-1].shape[1] == window.shape[1]
            if fits and found[-1].numel() + window.numel() <= tokens:
                found[-1] = torch.cat([found[-1], window])
            else:
                found.append(window)
    return found


def _drawn(model: Any, first: int, count: int, length: int, draw: torch.Generator) -> Tensor:
    ids = torch.full((count, 1), first)
    found = model(input_ids=ids, use_cache=True)
    while ids.shape[1] < length:
        chosen = found.logits[:, -1].float().softmax(-1).multinomial(1, generator=draw)
        ids = torch.cat([ids, chosen], 1)
        if ids.shape[1] < length:
            found = model(input_ids=chosen, past_key_values=found.past_key_values, use_cache=True)
    return ids


def _batches(data: Any, name: str, what: str) -> Iterable[Any]:
    if isinstance(data, str | Path):
        if name.endswith(".npy"):
            return [_npy(Path(name))]
        if name.endswith(".npz"):
            return [arrays.read(Path(name))]
        data = functions.named(name, what, DataError)
    if callable(data) and not isinstance(data, Iterable):
        data = functions.called(data, f"{what} {name}", DataError)
    if isinstance(data, np.ndarray | Tensor | Mapping):
        return [data]
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise DataError(f"{what} {name} gave a {type(data).__name__}; wanted an iterable of batches of token ids.")
    return functions.called(lambda: list(data), f"{what} {name}", DataError)


def _npy(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"There is no file '{path}'.")
    with foreign.reading(f"'{path}'", DataError, "write it with numpy.save"):
        return arrays.native(np.array(np.load(path, allow_pickle=False, mmap_mode="r")))


def _ids(batch: Any, where: str) -> Tensor:
    if isinstance(batch, Mapping):
        key = next((k for k in KEYS if k in batch), next(iter(batch), "") if len(batch) == 1 else None)
        if key is None:
            raise DataError(f"{where} names {', '.join(map(str, batch))}; wanted token ids as input_ids.")
        batch = batch[key]
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "iu":
        batch = torch.from_numpy(batch.astype(np.int64))
    if not isinstance(batch, Tensor) or batch.is_floating_point() or batch.is_complex() or batch.dtype == torch.bool:
        kind = batch.dtype if isinstance(batch, Tensor | np.ndarray) else type(batch).__name__
        raise DataError(f"{where} gave {kind}; wanted integers, token ids (windows, positions).")
    if batch.ndim != 2 or batch.shape[1] < 2 or not len(batch):
        raise DataError(
            f"{where} has the shape {tuple(batch.shape)}; wanted (windows, positions), two positions at least."
        )
    return batch.long()
