"""Move scale from what a site reads into the columns of its layers, where its outputs then lose less: SmoothQuant and AWQ.

Columns j times s_j, and whatever gives channel j divided by s_j, is the same function. A few channels that are far larger
than the others take the grid of a position from all of them; their share of the error moves into the weights. Candidates:
`s_j = max|x_j|^a / max_i|W_ij|^(1 - a)` (SmoothQuant) and `s_j = rms(x_j)^a` (AWQ), each as powers of two, so that no float
is rounded by it. They are compared by what the layers give with weights (some rows, on the best grids) and inputs rounded, on
text that is there already; the best is taken where it clearly gains.

What gives the channels is found by trying: a norm, whose gain is divided; or an earlier layer that its rows reach linearly (the
values of attention, "up" of a gated unit). The block must give the same as before to the last few bits. A norm that adds one to
its weight, or is read by others too, fails that and stays. Sources: Xiao et al. 2022 (arXiv:2211.10438), Lin et al. 2023
(arXiv:2306.00978).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tersor.language.reading import Site, seen
from tersor.maths.grid import Integers, search
from tersor.maths.ranges import by_position

CLEARLY = 0.9  # of the squared error without
BALANCES = (0.5, 0.65, 0.8)  # exponents of SmoothQuant
SALIENCES = (0.25, 0.5, 0.75, 1.0)  # exponents of AWQ
FURTHEST = 10  # powers of two
POSITIONS, VALUES = 1024, 1 << 19  # that candidates are compared on: of text, and of the layers' weights
SAME = 1e-5  # of the largest output


@dataclass(frozen=True)
class Move:
    """`giver`: the module of the block whose output channels were divided by `scale` (n,), powers of two."""

    giver: str
    scale: Tensor


def ease(
    block: nn.Module,
    run: Callable[[nn.Module], Tensor],
    site: Site,
    fitted: Mapping[str, Sequence[Tensor]],
    kind: Integers,
    reads: int,
    dtype: torch.dtype,
) -> Move | None:
    """Move scale before `site` in `block`, in place; None where that does not gain, or nothing gives its channels alone.

    run: of the block, for its output. fitted: layers that are on their grids and may be divided, with what is stored of them
    for each row. kind: of the site's weights. reads: bits of what it reads, 0 for floats. dtype: in which norms are stored.
    """
    x = seen(block, run, site, outputs=False).read
    x = x[:: -(-len(x) // POSITIONS)]
    layers = [_linear(block, name) for name in site.names]
    w = torch.cat([layer.weight.detach() for layer in layers])
    w = w[:: -(-w.numel() // VALUES)]
    known: Tensor | None = None
    scale: Tensor | None = None
    before: Tensor | None = None
    for giver, owner in _givers(block, fitted, x.shape[1]):
        if known is None or not torch.equal(known, owner):
            known, scale = owner, best_scale(x, w, kind, reads, owner)
        module = block.get_submodule(giver)
        kept = fitted.get(giver) or [p.to(dtype) for p in module.parameters(recurse=False)]
        if scale is None or not _exact(kept, scale):
            continue
        before = run(block) if before is None else before
        _divide(module, 1 / scale, layers, owner)
        if bool((run(block) - before).abs().max() <= SAME * before.abs().max()):
            return Move(giver, scale)
        _divide(module, scale, layers, owner)
    return None


def best_scale(x: Tensor, w: Tensor, kind: Integers, reads: int, owner: Tensor) -> Tensor | None:
    """By which to divide what gives the inputs x (positions, c) of weights w (r, c), channel j being given by `owner[j]`."""
    wanted = x @ w.mT

    def lost(scale: Tensor) -> float:
        wide = scale[owner]
        read, scaled = x / wide, w * wide
        rounded = search(scaled, read.square().mean(0), kind).round(scaled)
        return float(((by_position(read, reads) if reads else read) @ rounded.mT - wanted).square().sum())

    count = int(owner.max()) + 1
    loudest, strongest = (_largest(t.abs().amax(0), owner, count) for t in (x, w))
    power = _largest(x.square().mean(0).sqrt(), owner, count)
    candidates = [loudest**a / strongest ** (1 - a) for a in BALANCES] + [power**a for a in SALIENCES]
    scales = [_powers_of_two(c, (loudest > 0) & (strongest > 0)) for c in candidates]
    errors = [lost(scale) for scale in scales]
    least = min(range(len(scales)), key=errors.__getitem__)
    return scales[least] if errors[least] < CLEARLY * lost(torch.ones(count)) else None


def _powers_of_two(wanted: Tensor, alive: Tensor) -> Tensor:
    """`wanted`, with a geometric mean of one, at powers of two; one where nothing passes."""
    if not bool(alive.any()):
        return torch.ones_like(wanted)
    exponents = wanted.log2()
    exponents = (exponents - exponents[alive].mean()).round().clamp(-FURTHEST, FURTHEST)
    return torch.where(alive, exponents, 0.0).exp2()


def _largest(values: Tensor, owner: Tensor, count: int) -> Tensor:
    return torch.zeros(count).scatter_reduce(0, owner, values, "amax")


def _givers(block: nn.Module, fitted: Iterable[str], columns: int) -> Iterator[tuple[str, Tensor]]:
    """Modules that may give the channels that the site reads, and which of its own each of them is."""
    for name, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.shape == (columns,):
            yield name, torch.arange(columns)
    for name in reversed(list(fitted)):
        rows = _linear(block, name).out_features
        if rows == columns:
            yield name, torch.arange(columns)
        elif columns % rows == 0:  # heads that several queries share
            sizes = {getattr(module, "head_dim", None) for module in block.modules()}
            for size in sorted(s for s in sizes if isinstance(s, int) and rows % s == 0):
                heads = torch.arange(rows).reshape(-1, size)
                yield name, heads.repeat_interleave(columns // rows, 0).flatten()


def _exact(kept: Sequence[Tensor], scale: Tensor) -> bool:
    """Whether the tensors `kept`, in the types in which they are stored, can be divided by `scale` along their first axis."""
    for t in kept:
        factor = _along(scale, t)
        if not torch.equal((t.float() / factor).to(t.dtype).float() * factor, t.float()):
            return False
    return True


def _along(scale: Tensor, t: Tensor) -> Tensor:
    return scale.reshape([-1] + [1] * (t.ndim - 1))


def _linear(block: nn.Module, name: str) -> nn.Linear:
    layer = block.get_submodule(name)
    assert isinstance(layer, nn.Linear)  # only those are fitted
    return layer


def _divide(module: nn.Module, factor: Tensor, layers: Sequence[nn.Linear], owner: Tensor) -> None:
    """Output channels of `module` times `factor`, the columns of `layers` divided by it."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter * _along(factor, parameter)
    for layer in layers:
        layer.weight.data = layer.weight / factor[owner]
