"""Fitted models in the cache: a compress that was killed goes on from the fits that it had finished."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tersor.errors import ArtifactError
from tersor.graph.model import Model
from tersor.store.cache import Cache, Entry
from tersor.store.weights import apart, together
from tersor.target import Compressed, Dynamic, Grid


def remembered(cache: Cache, key: str, bare: Callable[[], Model], fit: Callable[[], Compressed]) -> Compressed:
    """The fit kept under `key`, put into what `bare` gives (the same graph, any values), else what `fit` gives."""
    entry = cache.get(key)
    found = None if entry is None else _unpacked(entry, bare)
    if found is None:
        found = fit()
        cache.put(key, *_packed(found))
    return found


def _packed(compressed: Compressed) -> tuple[dict[str, Tensor], dict]:
    tensors = {f"value/{name}": tensor for name, tensor in compressed.model.tensors()}
    content, parts = apart(compressed.weights)
    tensors |= {f"weight/{name}": tensor for name, tensor in parts.items()}
    return tensors, {"feeds": {name: _numbers(feed) for name, feed in compressed.feeds.items()}, "weights": content}


def _numbers(feed: Grid | Dynamic) -> list[float]:
    """What a static grid is made of; nothing for one that is made at run time."""
    return [feed.scale, feed.zero, feed.low, feed.high] if isinstance(feed, Grid) else []


def _unpacked(entry: Entry, bare: Callable[[], Model]) -> Compressed | None:
    try:
        parts = {n.removeprefix("weight/"): entry.tensors[n] for n in entry.tensors if n.startswith("weight/")}
        weights = together(entry.values["weights"], parts)
        feeds = {name: Grid(*numbers) if numbers else Dynamic() for name, numbers in entry.values["feeds"].items()}
        model = bare()
        for name, old in list(model.tensors()):
            value = entry.tensors[f"value/{name}"]
            if value.shape != old.shape or value.dtype != old.dtype:
                return None
            model.assign(name, value)
        return Compressed(model, weights, feeds)
    except (KeyError, TypeError, ValueError, ArtifactError):
        return None  # of another version: fit again
