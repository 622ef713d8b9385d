"""SparseGPT of llmcompressor, in an environment of its own: `python -m benchmarks.sparsity_peer MODEL IMAGES.npy OUT ASKED...`.

ASKED are shares of zeros and patterns like 2:4; OUT/ASKED.safetensors get the repaired weights, standard output the versions
and seconds (JSON). Its sequential pipeline is for language models, so its own functions (`accumulate_hessian`,
`sparsify_weight`, its settings as they come) are called in the same order: residual block after residual block, each
measured on what the sparse blocks before it give. Grouped convolutions it cannot take; they stay dense, and the rest gets
more zeros, so that the share over all is what was asked for.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import zoo

BATCH = 128
Layer = nn.Conv2d | nn.Linear


class _Enough(Exception):
    """All layers of the block have been seen."""


def sparse(network: nn.Module, images: Tensor, asked: str) -> nn.Module:
    """The network with zeros, and its other weights moved to make up for them."""
    from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import accumulate_hessian, sparsify_weight

    network = copy.deepcopy(network)
    every = {name: each for name, each in network.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)}
    layers = {name: each for name, each in every.items() if getattr(each, "groups", 1) == 1}
    n, m = (int(part) for part in asked.split(":")) if ":" in asked else (0, 0)
    weights, taken = (sum(each.weight.numel() for each in some.values()) for some in (every, layers))
    share = 0.5 if n else min(0.99, float(asked) * weights / taken)
    blocks: dict[str, list[Layer]] = {}
    for name, layer in layers.items():
        blocks.setdefault(name.rpartition(".")[0] or name, []).append(layer)
    for block in blocks.values():
        sums: dict[Layer, Tensor] = {}
        seen: dict[Layer, int] = dict.fromkeys(block, 0)
        for layer in block:
            columns = layer.weight[0].numel()  # its `make_empty_hessian` forgets the kernel of a convolution
            sums[layer] = torch.zeros(columns, columns)

        def note(layer: Layer, args: tuple[Tensor, ...], _: Tensor) -> None:
            sums[layer], seen[layer] = accumulate_hessian(args[0], layer, sums[layer], seen[layer])  # noqa: B023
            if len(set(seen.values())) == 1:  # noqa: B023
                raise _Enough

        hooks = [layer.register_forward_hook(note) for layer in block]
        for batch in images.split(BATCH):
            with contextlib.suppress(_Enough):
                network(batch)
        for hook in hooks:
            hook.remove()
        for layer in block:
            _, weight = sparsify_weight(layer, sums, share, n, m, 128, 0.01, False)
            layer.weight.data = weight
    return network


@torch.no_grad()
def main(key: str, images: str, out: str, *asked: str) -> None:
    """Write the weights of every cell."""
    import llmcompressor
    from safetensors.torch import save_file

    torch.set_num_threads(2)
    network, batch = zoo.module(key), torch.from_numpy(np.load(images))
    seconds = {}
    for each in asked:
        begin = time.perf_counter()
        found = sparse(network, batch, each)
        seconds[each] = time.perf_counter() - begin
        save_file(
            {name: p.detach().contiguous().clone() for name, p in found.named_parameters()},
            str(Path(out) / f"{each}.safetensors"),
        )
    print(json.dumps({"llmcompressor": llmcompressor.__version__, "torch": torch.__version__, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
