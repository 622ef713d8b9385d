"""Profiles in the cache: a second run with another budget does not measure again."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from tersor.profile import Facts, Profile, Range
from tersor.store.cache import Cache, Entry

_FACTS = ("gram", "fisher", "activity")
_MORE = "gradient"  # where it was asked for


def remembered(cache: Cache, key: str, measure: Callable[[], Profile]) -> Profile:
    """The profile kept under `key`, else what `measure` gives, which is then kept."""
    entry = cache.get(key)
    found = None if entry is None else _unpacked(entry)
    if found is None:
        found = measure()
        cache.put(key, *_packed(found))
    return found


def _packed(profile: Profile) -> tuple[dict[str, Tensor], dict]:
    tensors: dict[str, Tensor] = {}
    for name, facts in profile.facts.items():
        tensors |= {f"{part}/{name}": getattr(facts, part) for part in _FACTS}
        tensors |= {} if facts.gradient is None else {f"{_MORE}/{name}": facts.gradient}
    for name, seen in profile.ranges.items():
        tensors[f"counts/{name}"], tensors[f"edges/{name}"] = seen.counts, seen.edges
    ranges = {name: [seen.low, seen.high, *seen.usual] for name, seen in profile.ranges.items()}
    values = {"items": profile.items, "facts": list(profile.facts), "ranges": ranges}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, values


def _unpacked(entry: Entry) -> Profile | None:
    t, v = entry.tensors, entry.values
    try:
        facts = {name: Facts(**_parts(t, name)) for name in v["facts"]}
        ranges = {
            name: Range(low, high, t[f"counts/{name}"], t[f"edges/{name}"], (usual[0], usual[1]))
            for name, (low, high, *usual) in v["ranges"].items()
        }
        return Profile(facts, ranges, v["items"])
    except (KeyError, TypeError, ValueError):
        return None  # of another version: measure again


def _parts(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    found = {part: tensors[f"{part}/{name}"] for part in _FACTS}
    return found | ({_MORE: tensors[f"{_MORE}/{name}"]} if f"{_MORE}/{name}" in tensors else {})
