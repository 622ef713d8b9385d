"""Profiles in the cache: a second run with another budget does not measure again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from tersor.profile import Facts, Profile, Range
from tersor.shelf import Shelf
from tersor.store.cache import Cache, Entry

_FACTS = ("gram", "fisher", "activity")
_MORE = "gradient"  # where it was asked for
_SEEN = ("counts", "edges")


def remembered(cache: Cache, key: str, measure: Callable[[], Profile]) -> Profile:
    """The profile kept under `key`, else what `measure` gives, which is then kept."""
    entry = cache.get(key)
    found = None if entry is None else _unpacked(entry)
    if found is None:
        found = measure()
        cache.put(key, *_packed(found))
    return found


class _Packed(Mapping[str, Tensor]):
    """The tensors of a profile by name, each brought into memory when it is asked for."""

    def __init__(self, profile: Profile):
        self._profile = profile
        self._names = [f"{part}/{name}" for name in profile.facts for part in _FACTS]
        self._names += [f"{_MORE}/{name}" for name in profile.facts if profile.facts[name].gradient is not None]
        self._names += [f"{part}/{name}" for name in profile.ranges for part in _SEEN]

    def __getitem__(self, name: str) -> Tensor:
        part, _, of = name.partition("/")
        holder = self._profile.ranges[of] if part in _SEEN else self._profile.facts[of]
        return getattr(holder, part)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _packed(profile: Profile) -> tuple[Mapping[str, Tensor], dict]:
    ranges = {name: [seen.low, seen.high, *seen.usual] for name, seen in profile.ranges.items()}
    return _Packed(profile), {"items": profile.items, "facts": list(profile.facts), "ranges": ranges}


def _unpacked(entry: Entry) -> Profile | None:
    t, v = entry.tensors, entry.values
    try:
        facts: Shelf[Facts] = Shelf()
        for name in v["facts"]:
            facts[name] = Facts(**_parts(t, name))
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
