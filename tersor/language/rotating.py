"""Rotate what attention hands on, where less is lost by that: each head's values by a Hadamard matrix.

Attention mixes positions, not the channels of a head, so a rotation of the rows that give a head's values and the same of
the columns that read them is the same function. Channels that are larger than others are spread over the head, in the
weights, in what is read through a grid, and in the cache. Nothing is left to do when the model runs.

Which layer gives the values of which is found by trying: the block must give the same as before but for rounding. Source:
Ashkboos et al. 2024, arXiv:2404.00456 (their R2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from tersor.language.pack import Scheme
from tersor.language.reading import Site, seen
from tersor.maths.grid import search
from tersor.maths.hadamard import turned
from tersor.maths.ranges import by_position

CLEARLY = 0.95  # of the squared error without
SAME = 1e-5  # of the largest output


def rotate(
    block: nn.Module, run: Callable[[nn.Module], Tensor], found: Sequence[Site], schemes: Mapping[str, Scheme]
) -> list[tuple[str, str]]:
    """Rotate `block` in place before each of its sites where that gains; (giver, reader) of each that was rotated.

    run: of the block, for its output. found: its sites, in execution order. schemes: how the weights in it will be stored, by
    name. Cost: a run for each pair of layers that might fit together, four for a pair that does.
    """
    sizes = sorted({size for module in block.modules() if isinstance(size := getattr(module, "head_dim", None), int)})
    pairs: list[tuple[str, str]] = []
    earlier: dict[str, Site] = {}
    before: Tensor | None = None
    for site in found:
        (reader, *others) = site.names
        givers = [] if others else list(reversed(earlier))
        for giver, size in ((giver, size) for giver in givers for size in sizes):
            layers = _linear(block, giver), _linear(block, reader)
            rows, columns = layers[0].out_features, layers[1].in_features
            if size == 1 or rows % size or columns % rows:
                continue
            before = run(block) if before is None else before
            straight = _values(layers)
            _put(layers, _rotated(layers, size))
            if bool((run(block) - before).abs().max() > SAME * before.abs().max()):
                _put(layers, straight)
                continue
            reading = {giver: earlier[giver], reader: site}
            lost = _lost(block, run, before, reading, schemes)
            spread = _values(layers)
            _put(layers, straight)
            if lost < CLEARLY * _lost(block, run, before, reading, schemes):
                _put(layers, spread)
                pairs.append((giver, reader))
            break
        earlier |= dict.fromkeys(site.names, site)
    return pairs


def _lost(
    block: nn.Module,
    run: Callable[[nn.Module], Tensor],
    before: Tensor,
    reading: Mapping[str, Site],
    schemes: Mapping[str, Scheme],
) -> float:
    """The squared error of what the block gives with some layers as they would be stored, without any repair."""
    layers = {name: _linear(block, name) for name in reading}
    energies = {name: seen(block, run, site, outputs=False).read.square().mean(0) for name, site in reading.items()}
    kept = _values(layers.values())
    hooks = []
    for name, layer in layers.items():
        layer.weight.data = search(layer.weight, energies[name], schemes[name].kind).round(layer.weight)
        if bits := schemes[name].reads:
            hooks.append(layer.register_forward_pre_hook(partial(_on_grids, bits)))
    found = run(block)
    for hook in hooks:
        hook.remove()
    _put(layers.values(), kept)
    return float((found - before).square().sum())


def _on_grids(bits: int, layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (by_position(args[0], bits), *args[1:])


def _rotated(layers: Sequence[nn.Linear], size: int) -> list[list[Tensor]]:
    """The parameters of giver and reader, rows of the one and columns of the other rotated."""
    giver, reader = layers
    rows = [turned(p.data, size, 0) for p in giver.parameters(recurse=False)]
    return [rows, [turned(reader.weight.data, size, 1), *[p.data for p in list(reader.parameters(recurse=False))[1:]]]]


def _values(layers: Iterable[nn.Linear]) -> list[list[Tensor]]:
    return [[p.data for p in layer.parameters(recurse=False)] for layer in layers]


def _put(layers: Iterable[nn.Linear], values: Sequence[Sequence[Tensor]]) -> None:
    for layer, some in zip(layers, values, strict=True):
        for parameter, value in zip(layer.parameters(recurse=False), some, strict=True):
            parameter.data = value


def _linear(block: nn.Module, name: str) -> nn.Linear:
    layer = block.get_submodule(name)
    assert isinstance(layer, nn.Linear)  # only those are fitted
    return layer
