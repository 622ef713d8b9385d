"""Remove blocks of groups, or zero them: two ways to the same outputs.

`shrink` takes the blocks out of every producer, consumer, bias, norm and buffer, and puts the sizes that are baked into the
graph right. `mask` zeroes the same parameter values and leaves the shapes alone. Where a group's `counted` is empty, both give
the same outputs. Elsewhere a norm, a variance or a softmax sees fewer values after shrinking, not more zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tersor.graph.cut import Cut
from tersor.graph.dependency import Dependency, analyse
from tersor.graph.model import Model
from tersor.graph.surgery import resize, zero_tensors


def shrink(model: Model, keep: Mapping[str, Sequence[int]], dependency: Dependency | None = None) -> Model:
    """A smaller model in which `keep[group name]` are the block indices that stay; other groups stay whole.

    The result runs at every batch size and can be exported again. `dependency` is that of `model`, where it is known
    already. Raises `ModelError` for a group that the model does not have,
    a block out of range, or a group that would keep nothing.
    """
    dependency = dependency or analyse(model)
    cut = Cut(dependency, dependency.dead(keep), model.copy())
    if cut.dead:
        resize(cut)
    return cut.model


def mask(model: Model, keep: Mapping[str, Sequence[int]]) -> Model:
    """The same choice with zeros in place of what `shrink` removes: parameters, biases, norms and buffers, shapes untouched."""
    dependency = analyse(model)
    cut = Cut(dependency, dependency.dead(keep), model.copy())
    zero_tensors(cut)
    return cut.model
