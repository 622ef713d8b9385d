"""Run a program without memory, to see what it would take: sizes that operators make, and how much there is to compute.

A file of a few kilobytes may say `full([10**12], 0)`, multiply a column by a row until nothing holds the product, or count to
a power of a power. So a loaded program is run once on its own example with tensors that have shapes and no values (torch's
fake tensors). What it would hold at once and what it would compute are counted and held against the size of the file: a network
that is worth its bytes stays far below both.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tersor.hub.schema import Foreign

_HELD, _HELD_A_BYTE = 128 << 20, 256  # bytes that live at once: so many for any file, and more for every byte of it
_WORK, _WORK_A_BYTE = 2e10, 1e6  # multiply-adds and values made
_CALLS = 200_000  # operators in all
_CALL = 1000.0  # the work of calling anything
_WHOLE = 1 << 63  # numbers that sizes are computed with


def rehearse(program: ExportedProgram, path: Path) -> None:
    """Raise `Foreign` where running `program`, which was read from `path`, would take memory or time without proportion."""
    with torch.no_grad(), FakeTensorMode(), _Budget(path.stat().st_size) as budget:
        try:
            _Rehearsed(program.graph_module, budget).run(*_inputs(program))
        except Foreign:
            raise
        except (DataDependentOutputException, DynamicOutputShapeException) as cause:
            raise Foreign("a size that depends on values, so that nothing bounds it") from cause
        except Exception as cause:  # whatever torch's operators say of arguments that do not fit
            said = str(cause).strip().splitlines()[0][:200] if str(cause).strip() else type(cause).__name__
            raise Foreign(f"calls that cannot be made ({said})") from cause


class _Budget(TorchDispatchMode):
    """Counts what is called under it."""

    def __init__(self, nbytes: int):
        super().__init__()
        self._most_held = _HELD + _HELD_A_BYTE * nbytes
        self._most_work = _WORK + _WORK_A_BYTE * nbytes
        self._held, self._work, self._calls = 0, 0.0, 0
        self._storages: dict[int, tuple[int, int]] = {}  # bytes, and how many tensors share them
        self._times = 1  # how often what is called now is called

    @contextmanager
    def repeated(self, times: int) -> Iterator[None]:
        """What is called meanwhile counts `times` times."""
        before, self._times = self._times, self._times * times
        try:
            yield
        finally:
            self._times = before

    def computes(self, work: float) -> None:
        """Count multiply-adds, or values made."""
        self._calls += 1
        self._work += self._times * (work + _CALL)
        if self._work > self._most_work or self._calls > _CALLS:
            raise Foreign(
                f"{self._work:.0e} multiply-adds in {self._calls} calls, more than a file of this size warrants "
                f"({self._most_work:.0e})"
            )

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        made = [t for t in pytree.tree_leaves(found) if isinstance(t, Tensor)]
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.computes(count(*args, **(kwargs or {}), out_val=found) / 2)
        else:
            read = (t for t in pytree.tree_leaves(args) if isinstance(t, Tensor))
            self.computes(float(sum(t.numel() for t in (*made, *read))) * _depth(func, args))
        for each in made:
            self._holds(each)
        return found

    def _holds(self, made: Tensor) -> None:
        storage = made.untyped_storage()
        key = storage._cdata
        nbytes, shared = self._storages.get(key, (storage.nbytes(), 0))
        self._storages[key] = nbytes, shared + 1
        weakref.finalize(made, self._frees, key)
        self._held += 0 if shared else nbytes
        if self._held > self._most_held:
            raise Foreign(
                f"values of {self._held / 1e6:.0f} MB at once, more than a file of this size warrants "
                f"({self._most_held / 1e6:.0f} MB)"
            )

    def _frees(self, key: int) -> None:
        nbytes, shared = self._storages.pop(key)
        if shared > 1:
            self._storages[key] = nbytes, shared - 1
        else:
            self._held -= nbytes


class _Rehearsed(fx.Interpreter):
    """Runs a graph and those it calls; loops are run once and counted as often as they turn."""

    def __init__(self, module: fx.GraphModule, budget: _Budget):
        super().__init__(module)
        self.extra_traceback = False  # which is for who wrote the graph
        self._budget = budget

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._call_graphs(target.name(), args)
        if target in (operator.pow, operator.mul, operator.floordiv, operator.mod):
            if target is operator.pow and not all(isinstance(n, int | float) and abs(n) < 1 << 16 for n in args):
                raise Foreign("a power of a size that is no small number")
            if target is operator.pow and abs(args[1]) > 64:
                raise Foreign(f"the power {args[1]} of a size")
        found = super().call_function(target, args, kwargs)
        if isinstance(found, int) and abs(found) >= _WHOLE:
            raise Foreign("a size of more than 64 bits")
        return found

    def _call_graphs(self, name: str, args: tuple[Any, ...]) -> Any:
        graphs = [each for each in args if isinstance(each, fx.GraphModule)]
        after = args[max(i for i, each in enumerate(args) if isinstance(each, fx.GraphModule)) + 1 :]
        if name in ("scan", "map_impl"):
            return self._loop(graphs[0], after, name == "scan")
        given = after[0] if name == "cond" else after
        found = [_Rehearsed(graph, self._budget).run(*given) for graph in graphs]
        return found[0]

    def _loop(self, graph: fx.GraphModule, after: tuple[Any, ...], carries: bool) -> list[Any]:
        first = list(after[0]) if carries else []
        over, beside = after[1 if carries else 0], after[2 if carries else 1]
        turns = over[0].shape[0]
        with self._budget.repeated(turns):
            found = _Rehearsed(graph, self._budget).run(*first, *(each.select(0, 0) for each in over), *beside)
        each_turn = found[len(first) :]
        return [*found[: len(first)], *(one.new_empty((turns, *one.shape)) for one in each_turn)]


def _inputs(program: ExportedProgram) -> list[Any]:
    """What the lifted graph takes, without values: weights, and the user's example."""
    if program.example_inputs is None:
        raise Foreign("no example inputs")
    users = iter(pytree.tree_leaves(program.example_inputs))
    found: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            found.append(_shaped(next(users)))
        elif spec.target in program.state_dict:
            found.append(_shaped(program.state_dict[spec.target]))
        else:
            found.append(_shaped(program.constants[str(spec.target)]))
    return found


def _shaped(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)


def _depth(func: Any, args: tuple[Any, ...]) -> float:
    """How often an operator looks at each value: kernels of a pool, columns of a matrix that is inverted."""
    name = func.overloadpacket.__name__
    if "linalg" in name or name in ("inverse", "det", "slogdet", "logdet", "cdist", "_cdist_forward"):
        return float(max((max(t.shape, default=1) for t in args if isinstance(t, Tensor)), default=1))
    if "pool" in name:
        kernel = next((a for a in args[1:] if isinstance(a, list | tuple)), ())
        return float(math.prod(kernel)) if all(isinstance(n, int) for n in kernel) else 1.0
    return 1.0
