"""What the calibration items tell: the model with scales moved where that pays, its profile, and fits.

All of it is kept in the cache under everything it depends on, so that a compress that was killed, or that is asked for
another budget, goes on from what was finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor

from tersor.deadline import enforced
from tersor.fitting import Decisions, fit
from tersor.graph.model import Model
from tersor.inputs.job import Job
from tersor.measuring.machine import versions
from tersor.profile import Profile, measure, shelved
from tersor.recipe import plain
from tersor.rewrites.equalise import equalise_where_it_gains
from tersor.rewrites.smooth import scales, smooth
from tersor.site import sites
from tersor.store import fits, profiles
from tersor.store.cache import Cache, code, default_folder, digest, key
from tersor.target import Compressed

NEEDS = frozenset({"gram", "fisher"})
"""What every decision needs."""
MEASURED = NEEDS | {"gradient"}
"""What can be measured on calibration data."""
PROFILE_ITEMS = 512
QUANTISING_ITEMS = 256  # a grid has few degrees of freedom; a refit to fewer columns has many and takes all items


class Calibrated:
    """A model and what the calibration part of a job's data says of it; measured when it is first asked for."""

    def __init__(
        self, job: Job, folded: Model, movement: Mapping[str, Tensor] | None = None, needs: frozenset[str] = NEEDS
    ):
        """movement: what a training did to the weights, by matrix name, where one was made. needs: as for `profile.measure`."""
        self.needs = needs
        self._job = job
        self._folded = folded
        self._movement = dict(movement or {})
        self.cache = Cache(default_folder())
        self.cache.tidy()

    @property
    def model(self) -> Model:
        """The same function as the folded model, scales moved between layers where the quadratic falls by that."""
        return self._equalised[0]

    @cached_property
    def profile(self) -> Profile:
        """H, g and ranges of `model`."""
        return self._with_movement(self._equalised[1])

    @cached_property
    def _equalised(self) -> tuple[Model, Profile]:
        return equalised(self._folded, self.measured, self.needs)

    def _with_movement(self, seen: Profile) -> Profile:
        if not self._movement:
            return seen
        facts = shelved(seen.facts)
        for name, each in self._movement.items():
            facts[name] = replace(facts[name], movement=each)
        return replace(seen, facts=facts)

    def fit(self, decisions: Decisions, items: int | None = None) -> Compressed:
        """Carry out decisions on `model`. items: of the calibration part; else as many as the decisions are worth."""
        items = items or (len(self._job.calibration) if decisions.cuts else QUANTISING_ITEMS)
        divided = wanted_scales(self.model, decisions, self._scales)

        def fitted() -> Compressed:
            batches, seed, profile = self.inputs(items), self._job.seed, self._profile_for(decisions)
            model, facts = smooth(self.model, divided, profile.facts)
            known = replace(profile, facts=facts)
            with enforced():
                return fit(model, batches, known, decisions, seed=seed, progress=self._progress("fitting weights"))

        digests = digest(self._movement), digest(divided)
        key = self.key(self.model, "fit", items, plain(decisions), *digests, sorted(self.needs))
        return fits.remembered(self.cache, key, lambda: decisions.cut(smooth(self.model, divided)[0]), fitted)

    def _scales(self, weights: int, reads: int) -> Mapping[str, Tensor]:
        """What `rewrites.smooth` finds for these bits."""
        key = self.key(self.model, "scales", weights, reads)
        entry = self.cache.get(key)
        if entry is not None:
            return entry.tensors
        found = scales(self.model, self.inputs(PROFILE_ITEMS), weights, reads)
        self.cache.put(key, found)
        return found

    def _profile_for(self, decisions: Decisions) -> Profile:
        """The profile, with what the techniques need besides."""
        asked = frozenset().union(*(t.needs for t in decisions.techniques.values())) & MEASURED
        if asked <= self.needs:
            return self.profile
        wider = Calibrated(self._job, self._folded, needs=self.needs | asked)
        return self._with_movement(wider.measured(self.model))

    def measured(self, model: Model, needs: frozenset[str] | None = None) -> Profile:
        """H, g and ranges of any model that takes the same inputs; `needs` other than its own where they are given."""
        needs = self.needs if needs is None else needs
        items = min(PROFILE_ITEMS, len(self._job.calibration))
        progress = self._progress("calibrating")

        def measured() -> Profile:
            progress(0, items)
            batches, seed = self.inputs(items), self._job.seed
            with enforced():
                return measure(model, batches, needs, seed=seed, progress=lambda done: progress(done, items))

        return profiles.remembered(self.cache, self.key(model, "profile", sorted(needs)), measured)

    def _progress(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self._job.progress(stage, done, total)

    def key(self, model: Model, *more: Any) -> str:
        """Of everything that a result depends on, to the last bit."""
        job = self._job
        return key(*more, model.digest(), job.calibration.digest(), job.seed, job.threads, code(), versions())

    def inputs(self, items: int) -> list[tuple[Tensor, ...]]:
        """Of the first `items` of the calibration data, in batches."""
        return [batch.inputs for batch in self._job.calibration.take(items)]


def equalised(
    folded: Model, measured: Callable[[Model, frozenset[str]], Profile], needs: frozenset[str] = NEEDS
) -> tuple[Model, Profile]:
    """The model with scales moved where that pays, and its profile; `measured` makes one, of a model and what is needed."""
    seen = measured(folded, needs)
    model, facts = equalise_where_it_gains(folded, seen)
    return model, seen if model is folded else replace(seen, facts=facts, ranges=measured(model, frozenset()).ranges)


def wanted_scales(
    model: Model, decisions: Decisions, found: Callable[[int, int], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Of the scales `found` for bits of weights and of what they read, those that the integer layers of `decisions` want."""
    bits = {name: b for name, t in decisions.techniques.items() if isinstance(b := getattr(t, "bits", None), int)}
    read = {site.activation for site in sites(model) if any(m.name in bits for m in site.matrices)}
    if decisions.feeds == "none" or not read:
        return {}
    weights = min(8, *bits.values())  # halves lose less than any grid
    return {name: scale for name, scale in found(weights, decisions.bits).items() if name in read}


def prepared(folded: Model, batches: Sequence[Sequence[Tensor]], seed: int = 0) -> tuple[Model, Profile]:
    """`equalised` from flat input batches, kept nowhere."""
    return equalised(folded, lambda model, needs: measure(model, batches, needs, seed=seed))


def smoothed(
    model: Model, profile: Profile, batches: Sequence[Sequence[Tensor]], decisions: Decisions
) -> tuple[Model, Profile]:
    """The model and its profile with scales moved for the grids of `decisions`, kept nowhere."""
    divided = wanted_scales(model, decisions, lambda weights, reads: scales(model, batches, weights, reads))
    model, facts = smooth(model, divided, profile.facts)
    return model, replace(profile, facts=facts)
