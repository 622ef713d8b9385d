"""Whether a captured graph is the module: both are run on fresh inputs, and what differs is a sentence with the user's line.

Compared are: two calls of the module on the same inputs (state, chance), graph and module at several batch sizes, and, as
results are given item by item, each item alone with the same item among others. Costs a few dozen items of each; less where
the model is slow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from tersor.errors import ModelError
from tersor.graph import lines
from tersor.graph.model import Model
from tersor.graph.original import Original
from tersor.graph.state import Kept, loose, undisturbed

Flat = tuple[Tensor, ...]

SECONDS = 5.0  # of comparing; the first comparisons are made in any case
BYTES = 64 << 20  # of inputs at once
_SIZES = (1, 3, 2)
_PACE = 32
_LARGER = (*range(4, 66), 100, 128, 129, 200, 256, 257, 500, 512, 513, 1000, 1001, 1024, 1025, 4097)
_ITEMS, _ITEM = 5, 3  # a batch, and the item of it that is looked at: neither first nor last nor in the middle
_EXACT, _SAME, _CLOSE = 1e-6, 1e-4, 3e-3
"""Of the largest output: what other neighbours in a batch of the same size, another way to compute the same batch, and another
size of batch may change in float32."""
_CHOICES = 0.02  # share of values that a tie, decided the other way in float32, may change
_COUNTERS = (10, 1000, 1_000_000)
_CALLS, _CALLING = (
    300,
    0.3,
)  # times that the module is called again, and seconds that this may take: it may count somewhere


def check(model: Model, original: Original, flat: Sequence[Tensor], sizes: Sequence[int] = ()) -> None:
    """Raise `ModelError` where `model` and `original` differ on inputs like `flat`, or where items influence each other.

    sizes: batch sizes to try besides 1, 2 and 3.
    """
    until = time.monotonic() + SECONDS
    with undisturbed(original.module) as kept:
        moved = _check_calls(original, _batch(flat, 3, 0), kept)
    _check_counters(original, _batch(flat, 2, 0), moved)
    _check_items(model, original, flat)
    _check_size(model, original, tuple(t[:_ITEMS] for t in flat))
    item, pace, largest = sum(t[:1].nbytes for t in flat), 0.0, 0
    for size in dict.fromkeys((*_SIZES, *_violating(original), *sizes)):
        for each in (
            (_PACE, size) if size > _PACE > largest else (size,)
        ):  # many items together cost less than each alone
            late = time.monotonic() + pace * each > until or each * item > BYTES
            if late and each not in _SIZES[:2]:
                break
            started = time.monotonic()
            _check_size(model, original, _batch(flat, each, each))
            pace, largest = (time.monotonic() - started) / each, max(largest, each)


def _check_calls(original: Original, flat: Flat, kept: Kept) -> list[str]:
    """The names of what the calls moved in the module. Raises `ModelError` where two calls give different outputs."""
    states, results, around = [], [], loose(original.module)
    for _ in range(2):
        results.append(_tried(original.again, flat))
        states.append(lines.chance())
    names = kept.moved()
    if any(isinstance(value, FakeTensor) for result in results for value in result or ()):
        raise ModelError(
            "The model goes on with a value that an earlier call has left outside of it, in a global or a closure; make the "
            "forward pass independent of earlier calls, for example by an argument that holds the state."
        )
    if states[0] != states[1]:
        kept.restore()
        line = lines.where_moved(lambda: original.raw(*flat), lines.chance)
        raise ModelError(
            f"The model draws random numbers at inference{_at(line)}; make it depend on self.training, or draw them once when "
            "the model is built."
        )
    first, second = results
    if first is None or second is None:
        kept.restore()
        return names
    calls = 2 if not _alike(first, second, _SAME) else _calls_until_another(original, flat, first)
    names = kept.moved()
    kept.restore()
    if not calls:
        return names
    now = loose(original.module)
    names = names or [name for name, value in around.items() if now.get(name) != value]
    line = lines.where_moved(lambda: original.raw(*flat), lambda: (kept.moved(), loose(original.module)))
    kept.restore()
    line = line or lines.parting(lambda: original.raw(*flat), lambda: original.raw(*flat), _equal)
    what = f": it changes {_listed(names)}" if names else ""
    again = "again" if calls == 2 else f"{calls} times"
    raise ModelError(
        f"The model gives different outputs when it is called {again} on the same inputs{what}{_at(line)}; make the "
        "forward pass independent of earlier calls, of the time and of random numbers."
    )


def _calls_until_another(original: Original, flat: Flat, wanted: Flat) -> int:
    """After how many calls the module gives something else; 0 where it does not, as far as there is time to see."""
    until = time.monotonic() + _CALLING
    for calls in range(3, _CALLS):
        found = _tried(original.again, flat)
        if found is not None and not _alike(found, wanted, _SAME):
            return calls
        if time.monotonic() > until:
            break
    return 0


def _check_counters(original: Original, flat: Flat, moved: Sequence[str]) -> None:
    """Raise `ModelError` where a counter that the calls moved changes the outputs once it is large."""
    for name in moved:
        place, leaf = _place(original.module, name)
        value = place[leaf] if place is not None else None
        if type(value) not in (int, float):
            continue
        before = _tried(original, flat)
        for count in _COUNTERS:
            with undisturbed(original.module):
                place[leaf] = type(value)(count)
                after = _tried(original.again, flat)
            if before is not None and after is not None and not _alike(before, after, _SAME):
                line = _line_that_moves(original, flat, name)
                raise ModelError(
                    f"The model counts its calls in '{name}'{_at(line)} and gives different outputs after {count} of them; "
                    "make the forward pass independent of earlier calls."
                )


def _check_size(model: Model, original: Original, flat: Flat) -> None:
    """Raise `ModelError` where graph and module differ on a batch, or only one of them can run it."""
    size, usual = len(flat[0]), len(model.example[0])
    wanted = _tried(original, flat)
    if wanted is None:
        return  # what the module itself cannot run need not be run
    try:
        found = model.run(*flat)
    except Exception as cause:
        line = _at(_branch(original, flat, usual))
        raise ModelError(
            f"The model takes a batch of {size}, which the graph captured by torch.export refuses "
            f"({' '.join(str(cause).split())[:200]}){line}; make the forward pass independent of the batch size."
        ) from cause
    if _alike(found, wanted, _SAME):
        return
    if _by_fast_path(original, flat, found):
        raise ModelError(
            "The model gives other outputs where torch takes its fast path for padding, which an exported model has not: zeros "
            "at padded places; build nn.TransformerEncoder with enable_nested_tensor=False, or call "
            "torch.backends.mha.set_fastpath_enabled(False) where the model is made."
        )
    batch = _batch(flat, usual, 0)
    theirs, ours = (_tried(run, batch) for run in (original, model.run))
    if theirs is not None and ours is not None and _alike(ours, theirs, _SAME):
        line = _at(_branch(original, flat, usual))
        raise ModelError(
            f"The model computes something different for a batch of {size} than for one of {usual}{line}, and one graph cannot "
            "hold both; make the forward pass independent of the batch size."
        )
    raise ModelError(
        f"The graph captured by torch.export gives different outputs than the model ({_difference(found, wanted)} on new "
        "inputs); make the forward pass compute with torch operations only, not with Python or numpy values."
    )


def _by_fast_path(original: Original, flat: Flat, found: Flat) -> bool:
    """Whether the module gives what the graph gave once torch's own short cuts for attention are off."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        slow = _tried(original, flat)
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
    return enabled and slow is not None and _alike(found, slow, _SAME)


def _check_items(model: Model, original: Original, flat: Flat) -> None:
    """Raise `ModelError` where an item's outputs depend on the other items of its batch, or on its place there."""
    batch, others = tuple(map(_loud, _batch(flat, _ITEMS, 7))), _batch(flat, _ITEMS, 8)
    mixed = tuple(torch.cat([o[:_ITEM], *_item((t,)), o[_ITEM + 1 :]]) for t, o in zip(batch, others, strict=True))
    alone = _item(batch)
    together, among, single = (_tried(model.run, each) for each in (batch, mixed, alone))
    if together is None:
        return
    for name, value in zip(model.outputs, together, strict=True):
        if not value.ndim or len(value) != _ITEMS:
            raise ModelError(
                f"Output '{name}' has the shape {tuple(value.shape)} for a batch of {_ITEMS}; the first axis of every output "
                "must be the batch."
            )
    apart = among is None or _alike(_item(among), _item(together), _EXACT)
    if apart and (single is None or _alike(single, _item(together), _CLOSE, _CHOICES) or _by_rounding(model, batch)):
        return
    raise ModelError(
        f"The model mixes the items of a batch{_at(_mixing(model, original, batch, alone))}: an item's outputs depend on the "
        "other items, on its position or on the batch size; compute each item by itself."
    )


def _loud(items: Tensor) -> Tensor:
    """The items, and the neighbours of the one that is looked at so large that a maximum over the batch is theirs."""
    if not items.is_floating_point() or bool((items == items.round()).all()):
        return items
    factors = torch.full((len(items), *[1] * (items.ndim - 1)), 8.0, dtype=items.dtype)
    factors[_ITEM] = 1.0
    return items * factors


def _item(batch: Sequence[Tensor]) -> Flat:
    return tuple(t[_ITEM : _ITEM + 1] for t in batch)


def _mixing(model: Model, original: Original, batch: Flat, alone: Flat) -> str:
    """The line after which an item of `batch` is no longer what it is alone."""
    line = lines.parting(lambda: original.raw(*alone), lambda: original.raw(*batch), _item_of)
    if line:
        return line
    values: dict[str, Any] = {}
    model.interpret(alone, lambda node, value: values.setdefault(node.name, value))
    found: list[str] = []

    def visit(node: Any, value: Any) -> Any:
        if not found and isinstance(value, Tensor) and not _item_of(values.get(node.name), value):
            found.append(lines.of_node(node))
        return value

    model.interpret(batch, visit)
    return found[0] if found else ""


def _by_rounding(model: Model, batch: Flat) -> bool:
    """Whether an item of `batch` is what it is alone once computed in float64: a deep network can make much of a rounding."""
    precise = model.copy()
    precise.module.double()
    wide = tuple(t.double() if t.is_floating_point() else t for t in batch)
    together, single = _tried(precise.run, wide), _tried(precise.run, _item(wide))
    return together is not None and single is not None and _alike(single, _item(together), 1e-7)


def _branch(original: Original, flat: Flat, usual: int) -> str:
    """The line at which this batch goes another way than one of the usual size: where two runs part, else as tracing knows."""
    size = len(flat[0])
    other = tuple(t[torch.arange(usual) % size] for t in flat)
    line = lines.parting(lambda: original.raw(*flat), lambda: original.raw(*other), _first_of)
    asked = (limit.line for limit in original.limits if limit.line and not limit.holds(size))
    return line or next(asked, "")


def _violating(original: Original) -> Iterator[int]:
    """The smallest batch size that each condition of tracing forbids."""
    for limit in original.limits:
        found = next((size for size in (*_SIZES, *_LARGER) if not limit.holds(size)), None)
        if found is not None:
            yield found


def _line_that_moves(original: Original, flat: Flat, name: str) -> str:
    with undisturbed(original.module) as kept:
        return lines.where_moved(lambda: original.raw(*flat), lambda: name in kept.moved())


def _batch(flat: Sequence[Tensor], size: int, seed: int) -> Flat:
    """`size` items like those of `flat`, and none of them: the same draw for the same seed."""
    draw = torch.Generator().manual_seed(seed)
    picked = torch.randint(len(flat[0]), (size,), generator=draw)
    return tuple(_fresh(tensor, picked, draw) for tensor in flat)


def _fresh(tensor: Tensor, picked: Tensor, draw: torch.Generator) -> Tensor:
    items = tensor.detach()[picked].clone()
    if not items.numel():
        return items
    if tensor.dtype == torch.bool or not (tensor.is_floating_point() or tensor.is_complex()):
        low, high = int(tensor.min()), int(tensor.max())
        drawn = torch.randint(low, high + 1, items.shape, generator=draw).to(tensor.dtype)
        changed = torch.rand(items.shape, generator=draw) < 0.25
        return torch.where(changed, drawn, items)
    values = torch.view_as_real(items) if items.is_complex() else items
    if bool((values == values.round()).all()) and bool((values != values.flatten()[0]).any()):  # a mask, or counts
        order = torch.randperm(values[0].numel(), generator=draw)
        return items if values.is_complex() else values.flatten(1)[:, order].reshape(values.shape)
    spread = float(values.float().std()) if values.numel() > 1 else 0.0
    scale = 0.3 * spread if 0 < spread < float("inf") else 1.0
    noise = (torch.rand(values.shape, generator=draw, dtype=torch.float32) - 0.5) * 2 * scale
    fresh = values + noise.to(values.dtype)
    return torch.view_as_complex(fresh) if items.is_complex() else fresh


def _tried(run: Callable[..., Flat], flat: Flat) -> Flat | None:
    """The outputs; None where the user's code refuses these inputs."""
    try:
        return tuple(t for t in run(*flat) if isinstance(t, Tensor))
    except Exception:  # fresh inputs may be outside of what the model is for
        return None


def _alike(found: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float, choices: float = 0.0) -> bool:
    return len(found) == len(wanted) and all(
        _close(a, b, tolerance, choices) for a, b in zip(found, wanted, strict=True)
    )


def _close(a: Tensor, b: Tensor, tolerance: float, choices: float = 0.0) -> bool:
    """Whether all values are close, of integers all but the share `choices`; NaN is like NaN, an axis of one item like none."""
    if a.numel() != b.numel() or (a.shape != b.shape and a.squeeze().shape != b.squeeze().shape):
        return False
    if not a.numel():
        return True
    a, b = a.detach().reshape(-1), b.detach().reshape(-1)
    if a.is_complex() or b.is_complex():
        a, b = (torch.view_as_real(t.to(torch.complex128)).reshape(-1) for t in (a, b))
    if not (a.is_floating_point() or b.is_floating_point()):
        wrong = a != b
    else:
        choices = 0.0
        a, b = a.double(), b.double()
        size = b[b.isfinite()].abs()
        allowed = tolerance * float(size.max()) if size.numel() else 0.0
        wrong = ~((a == b) | ((a - b).abs() <= allowed) | (a.isnan() & b.isnan()))
    return int(wrong.sum()) <= choices * wrong.numel()


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _close(a, b, 0.0)
    return type(a) is type(b) and (a == b or a != a)


def _item_of(alone: Any, batch: Any) -> bool:
    """Whether a value of a batch of one is that of the item of a larger batch, as far as one can see it in the shapes."""
    if not (isinstance(alone, Tensor) and isinstance(batch, Tensor)):
        return type(alone) is not type(batch) or alone == batch or alone != alone
    if alone.shape == batch.shape:
        return _close(batch, alone, _CLOSE)
    if alone.ndim != batch.ndim or alone.ndim == 0 or alone.shape[1:] != batch.shape[1:]:
        return True
    rows = alone.shape[0]
    return batch.shape[0] % max(rows, 1) != 0 or _close(batch[_ITEM * rows : (_ITEM + 1) * rows], alone, _CLOSE)


def _first_of(a: Any, b: Any) -> bool:
    """Whether the first items of two batches are the same, as far as one can see it in the shapes."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        seen = min(a.shape[0], b.shape[0]) if a.ndim == b.ndim and a.ndim else 0
        return not seen or a.shape[1:] != b.shape[1:] or _close(a[:1], b[:1], _CLOSE)
    return type(a) is not type(b) or isinstance(a, float) or a == b


def _difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> str:
    for a, b in zip(found, wanted, strict=False):
        if a.shape != b.shape:
            return f"the shape {tuple(a.shape)} for {tuple(b.shape)}"
    far = max(float((a.double() - b.double()).abs().nan_to_num().max()) for a, b in zip(found, wanted, strict=True))
    return f"up to {far:.3g} apart"


def _place(held: Any, name: str) -> tuple[Any, Any]:
    """The dict or list in which a module, or what it holds, has the value called `name`, and its key there; None where that
    is not known."""
    *path, leaf = name.split(".")
    for part in path:
        held = held._modules.get(part, vars(held).get(part)) if isinstance(held, nn.Module) else _entry(held, part)
    within = held if isinstance(held, dict | list) or held is None else getattr(held, "__dict__", None)
    found = [key for key, value in _entries(within) if str(key) == leaf]
    return (within, found[0]) if found else (None, None)


def _entry(held: Any, key: str) -> Any:
    within = held if isinstance(held, dict | list) else getattr(held, "__dict__", None)
    return next((value for each, value in _entries(within) if str(each) == key), None)


def _entries(held: Any) -> list[tuple[Any, Any]]:
    return list(held.items() if isinstance(held, dict) else enumerate(held or ()))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _at(line: str) -> str:
    return f" at {line}" if line else ""
