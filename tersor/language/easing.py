"""Move scale from what a site reads into the columns of its layers, where its outputs then lose less: SmoothQuant and AWQ.

The candidates are those of `maths.smoothing`, compared on text that is there already; the best is taken where it clearly
gains.

What gives the channels is found by trying: a norm, whose gain is divided; or an earlier layer that its rows reach linearly (the
values of attention, "up" of a gated unit). The block must give the same as before to the last few bits. A norm that adds one to
its weight, or is read by others too, fails that and stays. Sources: Xiao et al. 2022 (arXiv:2211.10438), Lin et al. 2023
(arXiv:2306.00978).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tersor.language.reading import Site, seen
from tersor.maths.grid import Integers
from tersor.maths.ranges import by_position
from tersor.maths.smoothing import best_scale

CLEARLY = 0.9  # of the squared error without
POSITIONS = 1024  # of text, that candidates are compared on
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
    read = partial(by_position, bits=reads) if reads else _as_it_is
    known: Tensor | None = None
    scale: Tensor | None = None
    before: Tensor | None = None
    for giver, owner in _givers(block, fitted, x.shape[1]):
        if known is None or not torch.equal(known, owner):
            known, scale = owner, best_scale(x, w, kind, read, CLEARLY, owner)
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


def _as_it_is(x: Tensor) -> Tensor:
    return x


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
