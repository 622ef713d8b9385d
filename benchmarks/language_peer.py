"""GPTQ of llmcompressor, run in an environment of its own: `python benchmarks/language_peer.py FOLDER IDS.npy OUT BITS GROUPS`.

Its requirements pin other versions than ours, so it is called as a process. Symmetric, absmax scales, damping 1 %, its other
settings as they come; OUT gets the values that its weights stand for, as safetensors.
"""

from __future__ import annotations

import sys

import numpy as np
import torch


def main(folder: str, ids: str, out: str, bits: int, groups: int) -> None:
    """Quantise and write; `groups` is rounded up to a divisor of the columns, 0 for one scale an output."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    windows = np.load(ids)
    runs: dict[int, list[str]] = {}
    for name, layer in model.model.layers.named_modules():
        if isinstance(layer, torch.nn.Linear):
            columns = layer.in_features
            run = next((n for n in range(max(1, groups), columns) if columns % n == 0), 0) if groups else 0
            runs.setdefault(run, []).append(f"re:.*layers\\.{name.replace('.', chr(92) + '.')}$")
    config = {
        f"group_{run}": {
            "targets": names,
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": True,
                "strategy": "group" if run else "channel",
                "group_size": run or None,
            },
        }
        for run, names in runs.items()
    }
    data = Dataset.from_dict({"input_ids": windows.tolist(), "attention_mask": np.ones_like(windows).tolist()})
    unread = Tokenizer(models.WordLevel({"<unk>": 0}, "<unk>"))  # it wants a tokenizer, even for token ids
    oneshot(
        model=model,
        processor=PreTrainedTokenizerFast(tokenizer_object=unread, unk_token="<unk>", pad_token="<unk>"),
        dataset=data,
        recipe=GPTQModifier(config_groups=config, ignore=["lm_head"]),
        num_calibration_samples=len(windows),
        max_seq_length=windows.shape[1],
        shuffle_calibration_samples=False,
    )
    values = {
        name: p.detach().float().contiguous().clone()
        for name, p in model.named_parameters()
        if name.endswith(".weight")
    }
    save_file(values, out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
