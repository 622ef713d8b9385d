"""The search for the fastest artifact inside the budget.

1. *Lossless*: every target at every float precision, and everything in int8, are exported and timed side by side. Large
   embeddings have 8 bits wherever anything is in int8: looking up a row costs the same, and they may be most of a file. Where
   linear layers do most of the work, int8 is also tried with grids made at run time (dynamic feeds).
2. *Ladder*: a planner decides per layer and per group under a budget of seconds. Where all-int8 keeps the promise the rungs
   go down (narrower layers), else up (some layers back in float), until the promise breaks or holds.
3. *Choice*: the fastest trial that keeps the promise is raced once more, longer, against the unchanged model in its own
   runtime, in ONNX Runtime and in torch.

What fails (an export, a fit, a race, a file that cannot be judged) is noted with its reason, and the search goes on without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf, prod
from time import monotonic

from tersor import choice, memory
from tersor.calibrated import Calibrated
from tersor.deadline import TimeUp, enforced, until
from tersor.errors import BudgetError, DataWarning, RecipeError, StorageError, TargetError, TersorError, reason
from tersor.feeds import Feeds
from tersor.fitting import Decisions
from tersor.graph.macs import macs
from tersor.graph.model import Model
from tersor.inputs.job import Job, fingerprint
from tersor.measuring.clock import Race
from tersor.measuring.machine import weight_bits
from tersor.narrowing import Keep, Lost
from tersor.plan import Budget, Plan, Table
from tersor.planners.knapsack import knapsack
from tersor.pricing import FLOAT, Speeds, Widths, limited, price, weighed, widths, without
from tersor.recipe import Recipe, other_data, refuse_strangers, technique_called
from tersor.recovering import Recovering
from tersor.recovery.course import History
from tersor.recovery.wish import Recovery
from tersor.rewrites.shrink import shrink
from tersor.shelf import put_aside
from tersor.site import matrices, tables
from tersor.target import Compressed, Target
from tersor.targets import target_called, target_name
from tersor.technique import Technique
from tersor.techniques.gptq import GPTQ
from tersor.techniques.rounding import Rounding
from tersor.trials import Candidate, Trial, Workbench
from tersor.windows import narrowing

LOOKED_UP = Rounding(8)  # embeddings: no kernel multiplies by them
LARGE = 1 << 16  # values, from which on an embedding is worth it
BOLDER = (0.85, 0.7, 0.55, 0.4)  # of the seconds with everything in int8
LIMITS = (0.25, 0.375, 0.5, 0.625, 0.75)  # of its width that a group keeps at least
GENTLER = (0.1, 0.25, 0.5, 0.75)  # of the way back from int8 to float
ORIGINAL = "original (torch eager)"
BASELINE = ("onnxruntime", FLOAT)
STEPS = ("int8 and compiled candidates", "mixed-precision and pruned candidates")
ROUNDS = 20
FINAL_ROUNDS = 60
FAR = 3.0  # times the fastest: seen well enough in the last race after a few rounds
STARTS = 3  # of the last race, each with new processes: one that was unlucky may be a tenth slower all its life
NEAR = 1.2  # times the fastest: what may turn out to be the fastest in the last race
REPEATS = 2  # of the last race, where a file was not as fast as itself
_NARROW = (
    "int8 weights use only {bits} bits: this processor has no VNNI, so its integer kernels accumulate in 16 bits, which wider "
    "weights overflow."
)
BEHIND = 2.0  # times the fastest: no bolder plan of a slower runtime would catch up


@dataclass
class Search:
    """One search, as far as it has come: what was decided for each trial, and why."""

    job: Job
    model: Model  # rewritten, lossless
    bench: Workbench
    targets: Sequence[Target]
    decided: dict[str, Decisions | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    recover: Recovery | None = None  # how what loses too much may be trained
    factors: Mapping[str, float] = field(default_factory=dict)  # by group, how many times more is lost than predicted
    trained: set[str] = field(default_factory=set)
    courses: dict[str, History] = field(default_factory=dict)  # of trainings, by plan
    cuts: tuple[Widths, ...] = ()  # the widths on offer
    damage: dict[tuple[str, str], float] = field(default_factory=dict)  # predicted, by matrix and technique
    failed: list[Exception] = field(default_factory=list)  # what ended a step of the search
    late: bool = False  # whether the time limit ended it
    enter: Callable[[float | None], None] = lambda more: (
        None
    )  # told of each of STEPS, with the seconds that are left at most

    @cached_property
    def ground(self) -> Calibrated:
        """What decisions are made on: the model as it is fitted, and its profile."""
        return Calibrated(self.job, self.model)

    def run(self) -> str:
        """All of it, or as much as there is time for, so that what was tried can still be chosen from and delivered. Gives what
        was left out or cut short; nothing where there was time for everything.
        """
        limit, steps = self.job.deadline, {STEPS[0]: self.lossless_and_int8, STEPS[1]: self.ladder}
        ahead = list(steps)
        try:
            if limit.limited:
                with until(limit.sooner(self.bench.delivering)):
                    self._quick()
            with until(limit.sooner(self.bench.choosing)):
                begun = monotonic()
                for place, (name, step) in enumerate(steps.items()):
                    self.enter(self._at_most(monotonic() - begun) if place else None)
                    step()
                    ahead.remove(name)
        except TimeUp:
            self.late = True
            return "; ".join(ahead)
        return ""

    def _at_most(self, whole: float) -> float | None:
        """Seconds that plans and the last race take at most, where all whole files took `whole`: a rung takes no longer than
        these, and nothing longer than the time limit. None where a training may be as long as it likes."""
        limit = self.job.deadline
        known = [] if self.recover is not None else [(len(BOLDER) + 1) * whole + self.bench.choosing()]
        left = [max(0.0, limit.whole - limit.spent)] if limit.limited else []
        return min([*known, *left], default=None)

    def best_so_far(self) -> str:
        """The fastest file that keeps the promise on held-out data, and its time; of those that were judged by now."""
        known = [t for t in self.bench.alive().values() if t.seconds is not None and self.bench.looked_at(t.name)]
        good = [t for t in known if self.bench.promising(t.name)]
        best = min(good, key=lambda t: t.seconds or inf, default=None)
        return "" if best is None else f"{best.name}, {1e3 * (best.seconds or 0.0):.3g} ms"

    def _quick(self) -> None:
        """Have something lossless timed and verified before anything slow is begun: where there is no time to choose, that is
        delivered."""
        quick = [t for t in self.targets if t.precision != "int8" and not t.compiles]
        files = [t for t in quick if target_name(t)[0] != "eager"]  # which is timed as the original
        self._try_whole(files or quick)
        if not self.bench.alive():
            return
        beside = [name for name in (self.unchanged("eager"),) if name is not None]
        with suppress(TargetError):  # each has its reason by now
            self.bench.time(list(dict.fromkeys([*self.bench.alive(), *beside])), ROUNDS, BEHIND, rehearse=False)
            self.bench.fastest_inside()

    def lossless_and_int8(self) -> None:
        """Try every target at every precision, whole, and time them side by side."""
        tried = {trial.candidate.target for trial in self.bench.trials.values()}
        self._try_whole([t for t in self.targets if t.precision != "int8" and t not in tried])
        if any(t.precision == "int8" for t in self.targets):
            if weight_bits() < 8:
                self.notes.append(_NARROW.format(bits=weight_bits()))
            with self._step("Quantizing everything to int8"):
                self._try_decisions(self._everything_int8("static"))
            with self._step("Quantizing everything to int8 with dynamic activations"):
                dynamic = self._everything_int8("dynamic")
                if mostly_linear(self.model) and any(_runs(t, dynamic) for t in self.targets):
                    self._try_decisions(dynamic, " dynamic")
        self._time_all()
        if not self.bench.alive():
            raise self._nothing()
        with self._step("Trying other placements of activation quantizers"):
            self._placements()

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        """Something that may fail, in torch, in a runtime or in us: why is noted, and the search goes on with what it has."""
        try:
            yield
        except Exception as cause:
            self.failed.append(cause)
            self.notes.append(f"{what} failed; the search continued without it: {reason(cause)}")

    def _placements(self) -> None:
        """Time the fastest int8 against itself with its activations put on grids in other ways; go on with the fastest."""
        usual = self._fastest_int8()
        if usual is None:
            return
        standard = usual.candidate.target
        file, precision = target_name(standard)[:2]
        others = [target_called(file, precision, p) for p in standard.placements if p != standard.placement]
        compressed, decisions = usual.candidate.compressed, self.decided[usual.name]
        tried = self._try([Candidate(_label(t), t, compressed) for t in others], decisions)
        if not tried:
            return
        self.bench.time([usual.name, *(t.name for t in tried)], ROUNDS, BEHIND)
        best = self._fastest_int8()
        if best is not None:
            self.targets = [best.candidate.target if target == standard else target for target in self.targets]

    def ladder(self) -> None:
        """Plan under budgets of seconds around all-int8: bolder while it looks good, else gentler until it does; then once
        more between the last two."""
        with self._step("Planning"):
            self._climb()

    def _climb(self) -> None:
        int8 = self._fastest_int8()
        while int8 is not None and self.bench.on_held(int8.name) is None:  # it cannot be judged, and is out by now
            int8 = self._fastest_int8()
        if int8 is None:
            return
        bold = self.bench.promising(int8.name)
        if not bold and self.recover is not None:
            int8 = self._trained(int8) or int8
            bold = self.bench.promising(int8.name)
        table = self._table(int8, bold)
        last = int8.seconds or 0.0
        for seconds in self._rungs(int8, bold):
            best = self.bench.fastest_promising()
            if best is not None and not bold and seconds >= (best.seconds or 0.0):
                return
            if self._rung(table, seconds) != bold:
                self._rung(table, (last + seconds) / 2)
                return
            last = seconds

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Hashes of the data that decisions are made from."""
        return fingerprint(self.job)

    def follow(self, recipe: Recipe) -> None:
        """Re-apply a saved decision instead of searching."""
        other = other_data(recipe, self.fingerprint)
        if other is not None:
            warnings.warn(other, DataWarning, stacklevel=2)
            self.notes.append(other)
        target = target_called(*recipe.target)
        self.targets = [target]
        if recipe.decisions is not None and not _runs(target, recipe.decisions):
            raise RecipeError(
                f"The recipe has feeds: {recipe.decisions.feeds}, which {_label(target)} does not run; correct that line or "
                "the target."
            )
        if recipe.decisions is None:
            whole = self._plain if recipe.unchanged else self._folded
            self._try([Candidate(_label(target), target, whole)], None)
        else:
            refuse_strangers(recipe.decisions, self.model)
            self.recover = None if recipe.recover is None else Recovery.of(**recipe.recover)
            with self._step("Carrying out the recipe"):
                self._try_decisions(recipe.decisions, train=self.recover is not None)
        self._time_all()
        if not self.bench.alive():
            raise self._nothing()

    def choose(self) -> tuple[Trial, Race]:
        """The trial to deliver, and its race against the original. Raises `BudgetError` or `TargetError` if there is none.

        The fastest that keeps the promise, those near it and the lossless ones are raced. What is not measurably faster is not
        worth losing anything for: see `choice`.
        """
        while True:
            best, near = self._verified()
            if best is None:
                if not self.bench.alive() and self.late:
                    raise TimeUp  # not all was tried, which says nothing of the targets
                raise self._nothing()
            known = {t.name: t for t in (best, *near, *self._lossless())}
            try:
                race = self._race_at_the_end(best, known)
            except TargetError as cause:  # each has its reason by now
                if self.bench.trials[best.name].refused is None:
                    self.bench.rule_out(best.name, f"It could not be timed: {cause}")
                continue
            raced = [n for n in known if n in race.samples and self.bench.trials[n].refused is None]
            if best.name not in raced:
                continue
            chosen = next((n for n in self._preferred(race, raced) if self._kept(n)), best.name)
            self._explain(race, raced, chosen)
            return self.bench.trials[chosen], race

    def _race_at_the_end(self, best: Trial, known: Mapping[str, Trial]) -> Race:
        """The last race, beside what there is to compare with; where there is no time for one, the last that `best` was in."""
        names = list(known)
        try:
            with until(self.job.deadline.sooner(self.bench.copying)):
                names = [*dict.fromkeys((*names, *self._references(known.values())))]
        except TimeUp:
            self.notes.append("The time limit left no time to make all files that the chosen one is compared with.")
        try:
            with until(self.job.deadline.sooner(self.bench.copying)):
                return self._last_race(names)
        except TimeUp:
            earlier = self.bench.latest(best.name)
            if earlier is None:
                raise
            self.notes.append(
                "The time limit left no time for the last race: times are those of an earlier, shorter one."
            )
            return earlier

    def _kept(self, name: str) -> bool:
        """Whether a file keeps the promise on evaluation data, as far as that is known or there is time to find it out."""
        try:
            with until(self.job.deadline.sooner(self.bench.copying)):
                return self.bench.inside(name)
        except TimeUp:
            return False

    def _last_race(self, names: Sequence[str]) -> Race:
        """Repeated where a file was not as fast as itself; the quietest race counts, and where that is noisy, it is said."""
        race = self.bench.time(names, FINAL_ROUNDS, FAR, starts=STARTS)
        try:
            for _ in range(REPEATS):
                if choice.noise(race) > choice.NOISE:
                    with until(self.job.deadline.sooner(self.bench.closing)):
                        race = min(race, self.bench.time(names, FINAL_ROUNDS, FAR, starts=STARTS), key=choice.noise)
        except TimeUp:
            pass
        noise = choice.noise(race)
        if noise > choice.NOISE:
            self.notes.append(
                f"Time differences below {100 * noise:.0f} % could not be measured: in the last comparison one file differed "
                f"from itself by that much (load average {race.load[1]:.1f}). Where candidates could not be told apart, the "
                "simplest was chosen; on a quiet machine another may be measurably faster."
            )
        return race

    def _preferred(self, race: Race, names: Sequence[str]) -> list[str]:
        def cost(name: str) -> tuple[float, ...]:
            try:
                with until(self.job.deadline.sooner(self.bench.copying)):
                    lost = self.bench.lost(name)
            except TimeUp:
                lost = inf
            return max(0.0, lost), self.bench.trials[name].nbytes

        return choice.preferred(race, names, self._simplicity, cost)

    def _explain(self, race: Race, raced: Sequence[str], chosen: str) -> None:
        first = min(raced, key=race.median)
        if chosen != first and self._simplicity(chosen) < self._simplicity(first):
            self.notes.append(f"'{first}' was not measurably faster than '{chosen}', which is simpler.")
        elif chosen != first and self._kept(first):
            self.notes.append(f"'{first}' was not measurably faster than '{chosen}', which loses less or is smaller.")
        if self._simplicity(chosen) == 0 and any(decisions is not None for decisions in self.decided.values()):
            self.notes.append("No compressed candidate was measurably faster: the artifact holds the unchanged model.")

    def _simplicity(self, name: str) -> int:
        """From 0, a plain export, up: rewritten without loss, in another float precision, in int8, narrower or trained."""
        candidate, decisions = self.bench.trials[name].candidate, self.decided.get(name)
        if decisions is None:
            whole = candidate.target.precision == FLOAT
            return (0 if candidate.compressed.model is self.job.model else 1) if whole else 2
        return 4 if decisions.cuts or name in self.trained else 3

    def _lossless(self) -> list[Trial]:
        """What a lossy file must be measurably faster than: the fastest timed lossless one, and ONNX Runtime's plain export."""
        timed = [t for t in self.bench.alive().values() if t.seconds is not None]
        floats = [t for t in timed if self._simplicity(t.name) <= choice.LOSSLESS]
        floats.sort(key=lambda t: t.seconds or inf)
        plain = [t for t in floats if target_name(t.candidate.target) == BASELINE and self._simplicity(t.name) == 0]
        return [*floats[:1], *plain]

    def _references(self, trials: Iterable[Trial]) -> list[str]:
        """What is raced to compare with: the unchanged model in every runtime at hand, in ONNX Runtime, and in torch."""
        files = {target_name(t.candidate.target)[0] for t in trials}
        files |= {target_name(t)[0] for t in self.targets} & {BASELINE[0]}
        found = [self.unchanged(file) for file in sorted(files)]
        return list(dict.fromkeys(name for name in (*found, self.unchanged("eager")) if name is not None))

    def unchanged(self, file: str, late: bool = False) -> str | None:
        """The trial of the unchanged model in a runtime, made for comparison where it is none of the candidates; None where
        there is none, and it cannot be made, or it is too late for that."""
        target = target_called(file, FLOAT)
        name = ORIGINAL if file == "eager" else f"{_label(target)} (unchanged model)"
        for trial in self.bench.trials.values():
            same = trial.candidate.target == target and trial.candidate.compressed.model is self.job.model
            if trial.name == name or (same and name != ORIGINAL):
                return trial.name if trial.refused is None else None
        if late:
            return None
        made = self.bench.export([Candidate(name, target, self._plain, reference=True)])
        return made[0].name if made else None

    def _verified(self) -> tuple[Trial | None, list[Trial]]:
        """The fastest trial that keeps the promise on evaluation data, and those near it. Where time is short: the fastest of
        those that are judged already, or that nothing lossy was done to, which need no luck."""
        timed = any(trial.seconds is not None for trial in self.bench.alive().values())
        best: Trial | None = None
        try:
            with until(self.job.deadline.sooner(self.bench.verifying)):
                if timed:
                    best = self.bench.fastest_inside()
                    return best, [] if best is None else self.bench.near(best.name, NEAR)
        except TimeUp:
            if best is not None:  # it is verified; what may be as fast is not looked for
                return best, []
        tried = [t for t in self.bench.alive().values() if t.name != ORIGINAL]
        if not tried:
            return None, []
        whole = [t for t in tried if self.decided[t.name] is None and not t.candidate.target.compiles]
        ready = [*(t for t in tried if t.score is not None and t not in whole), *whole]  # the former are judged already
        if not ready:
            raise TimeUp
        ready.sort(key=lambda t: (t.score is None, t.seconds or inf))
        with until(self.job.deadline.sooner(self.bench.copying)):
            inside = (t for t in ready if self.bench.inside(t.name))
            return next(inside, None), []

    def recipe(self, trial: Trial) -> Recipe:
        """What gives this trial again."""
        target = target_name(trial.candidate.target)
        items = len(self.job.calibration)
        trained = self.recover.written if self.recover is not None and trial.name in self.trained else None
        unchanged = self._simplicity(trial.name) == 0
        decisions, job = self.decided[trial.name], self.job
        return Recipe(target, decisions, job.seed, items, job.threads, trained, self.fingerprint, unchanged)

    def predicted(self, trial: Trial) -> float | None:
        """The damage that the quadratic predicts for a trial, nats an item at the profile's temperature; None: unpriced."""
        if trial.candidate.plan is not None:
            return trial.candidate.plan.damage
        decisions = self.decided[trial.name]
        chosen = dict(decisions.techniques) if decisions else {}
        rows = [(m.name, repr(chosen[m.name])) for m in matrices(self.model) if m.name in chosen]
        known = decisions is not None and not decisions.cuts and all(row in self.damage for row in rows)
        return sum(self.damage[row] for row in rows) if known else None

    def _time_all(self) -> None:
        with suppress(
            TargetError, StorageError
        ):  # each has its reason by now; or the disk is full, and earlier times stay
            self.bench.time([*self.bench.alive()], ROUNDS, BEHIND)

    def _everything_int8(self, feeds: Feeds) -> Decisions:
        chosen = {m.name: technique() for m in matrices(self.model) if m.name not in self.job.exclude}
        return Decisions(keep={}, techniques=chosen | self._looked_up({}), feeds=feeds)

    def _looked_up(self, keep: Keep) -> dict[str, Technique]:
        """What is done to large embeddings: nothing to those that `keep` makes narrower."""
        cut = {m.tensor for cut in self.cuts if cut.group.name in keep for m in cut.group.members}
        large = [t for t in tables(self.model) if prod(t.shape) >= LARGE and t.weight not in cut]
        return {t.name: LOOKED_UP for t in large if t.name not in self.job.exclude}

    def _try_whole(self, targets: Sequence[Target]) -> None:
        """With norms folded; where the runtime does that itself, also the model as it was brought."""
        for target in targets:
            plain = target.folds_norms and target.precision == FLOAT
            if plain:
                self._try([Candidate(_label(target), target, self._plain)], None)
            if not plain or self._folded is not self._plain:
                self._try([Candidate(_label(target) + (", norms folded" if plain else ""), target, self._folded)], None)

    @cached_property
    def _plain(self) -> Compressed:
        """The model as it was brought."""
        return Compressed(self.job.model)

    @cached_property
    def _folded(self) -> Compressed:
        """The rewritten model, which may be the same."""
        return self._plain if self.model.digest() == self.job.model.digest() else Compressed(self.model)

    def _try_decisions(
        self, decisions: Decisions, suffix: str = "", plan: Plan | None = None, train: bool = False
    ) -> list[Trial]:
        compressed = self.ground.fit(decisions)
        suffix += self._said(decisions, compressed) + (", trained" if train else "")
        if train and self.recover is not None:
            recovering = Recovering(self.job, self.ground, self.recover)
            compressed = recovering(compressed)
            self.courses[suffix.strip(", ")] = recovering.history
        fitting = [t for t in self.targets if _runs(t, decisions)]
        if plan is not None:  # planned with the seconds of the runtimes that know int8
            planned = {type(t) for t in self.targets if t.precision == "int8"}
            fitting = [t for t in fitting if type(t) in planned]
        let_go = self._put_aside(compressed)
        tried = self._try([Candidate(_label(t) + suffix, t, compressed, plan) for t in fitting], decisions, train)
        let_go()
        return tried

    def _put_aside(self, compressed: Compressed) -> Callable[[], None]:
        """A large fitted model lies on the disk, but for what it shares with the model it was made of, so that many of them do
        not hold many times its size. What is given lets go of what an export has read."""
        models = self.job.model, self.model, self.ground.model
        shared = {tensor.data_ptr() for model in models for _, tensor in model.tensors()}
        own = [tensor for tensor in compressed.tensors() if tensor.data_ptr() not in shared]
        return put_aside(own) if sum(t.nbytes for t in own) > memory.LARGE else lambda: None

    def _said(self, decisions: Decisions, compressed: Compressed) -> str:
        """What was done, for a name: nothing where it is what the target's name says."""
        done = []
        if decisions.cuts:
            left = sum(macs(compressed.model).values()) / max(1, sum(macs(self.model).values()))
            done.append(f"pruned to {100 * left:.0f} % of the multiply-adds")
        layers = [m.name for m in matrices(compressed.model)]
        integer = [name for name in layers if name in decisions.techniques]
        if decisions.techniques and len(integer) < len(layers):
            done.append(f"{len(integer)} of {len(layers)} layers in int8")
        return "".join(f", {each}" for each in done)

    def _try(self, candidates: Sequence[Candidate], decisions: Decisions | None, trained: bool = False) -> list[Trial]:
        """Export candidates; two that would be called the same get numbers."""
        named = [replace(c, name=self._free(c.name)) for c in candidates]
        self.decided |= {candidate.name: decisions for candidate in named}
        self.trained |= {candidate.name for candidate in named if trained}
        return self.bench.export(named)

    def _free(self, name: str) -> str:
        free, count = name, 2
        while free in self.bench.trials:
            free, count = f"{name} ({count})", count + 1
        return free

    def _fastest_int8(self) -> Trial | None:
        """Of those with static feeds, as the rungs have them."""
        fed = {
            name for name, decisions in self.decided.items() if decisions is not None and decisions.feeds == "static"
        }
        found = [t for t in self.bench.alive().values() if t.seconds is not None and t.name in fed]
        return min(found, key=lambda t: t.seconds or 0.0, default=None)

    def _table(self, int8: Trial, bold: bool) -> Table:
        ground, exclude = self.ground, self.job.exclude
        with enforced():
            self.cuts = widths(ground.model, ground.profile, exclude) if bold else ()
        arithmetic = 1.0
        with self._step("Timing a narrower model"):
            arithmetic = self._arithmetic(int8)
        speeds = Speeds(self._seconds_in_float(int8), int8.seconds or 0.0, arithmetic)
        with enforced():
            table = price(ground.model, ground.profile, [technique()], speeds, self.cuts, exclude)
        if bold and FLOAT not in {t.precision for t in self.targets}:  # nothing would run a plan that is all in float
            table = without(table, FLOAT)
        self.damage = {(row, option.name): option.damage for row, options in table.rows.items() for option in options}
        return table

    def _arithmetic(self, int8: Trial) -> float:
        """What part of the int8 time shrinks with the multiply-accumulates.

        The rest is dispatch, which int8 and float share: it follows from the float model at half of every width.
        """
        whole = self._in_float(int8)
        if not self.cuts or whole is None:
            return 1.0
        narrow = shrink(self.model, {cut.group.name: cut.blocks(-(-cut.group.blocks // 2)) for cut in self.cuts})
        probe = Candidate("half of every width", whole.candidate.target, Compressed(narrow))
        ratio = self.bench.ratio(probe, whole.name, ROUNDS)
        left = sum(macs(narrow).values()) / sum(macs(self.model).values())
        if ratio is None or left >= 1.0:
            return 1.0
        dispatch = (whole.seconds or 0.0) * max(0.0, 1 - (1 - ratio) / (1 - left))
        return min(1.0, max(0.05, 1 - dispatch / (int8.seconds or 1.0)))

    def _in_float(self, int8: Trial) -> Trial | None:
        """The trial of the same runtime, whole in fp32."""
        kind = type(int8.candidate.target)
        same = (t for t in self.bench.alive().values() if isinstance(t.candidate.target, kind))
        return next((t for t in same if t.candidate.target.precision == FLOAT), None)

    def _seconds_in_float(self, int8: Trial) -> float:
        whole = self._in_float(int8)
        return max(whole.seconds or 0.0 if whole is not None else 0.0, int8.seconds or 0.0)

    def _trained(self, int8: Trial) -> Trial | None:
        """All-int8 after a training, where that keeps the promise."""
        decisions = self.decided[int8.name]
        assert decisions is not None  # what is in int8 was decided
        trials = self._try_decisions(decisions, train=True)
        self.bench.time([int8.name, *(t.name for t in trials)], ROUNDS)
        good = [self.bench.trials[t.name] for t in trials if self.bench.promising(t.name)]
        return min(good, key=lambda t: t.seconds or 0.0, default=None)

    def _rungs(self, int8: Trial, bold: bool) -> list[float]:
        fast, slow = int8.seconds or 0.0, self._seconds_in_float(int8)
        return [fast * share for share in BOLDER] if bold else [fast + share * (slow - fast) for share in GENTLER]

    def _rung(self, table: Table, seconds: float) -> bool:
        """Plan, fit, export and time one rung; whether any of its trials looks good on data held out of calibration."""
        with self._step(f"The plan for {1e3 * seconds:.3g} ms"):
            return self._rung_within(table, seconds)
        return False

    def _rung_within(self, table: Table, seconds: float) -> bool:
        try:
            plan = self._plan(table, Budget(seconds=seconds))
        except BudgetError as short:
            self.notes.append(str(short))
            return False
        trials = self._try_decisions(self._decisions(plan), plan=plan)
        good = [t for t in trials if self.bench.promising(t.name)]
        if not good and self.recover is not None:
            trials = self._try_decisions(self._decisions(plan), plan=plan, train=True)
            good = [t for t in trials if self.bench.promising(t.name)]
        if not trials:
            self.notes.append(f"No target runs the plan for {1e3 * seconds:.3g} ms.")
            return False
        if not good:
            tried = ", ".join(f"'{t.name}'" for t in trials)
            self.notes.append(f"Over budget on held-out data: {tried}.")
            return False
        best = self.bench.fastest_promising()
        self.bench.time([t.name for t in good] + [best.name for _ in (1,) if best is not None], ROUNDS)
        return True

    def _plan(self, table: Table, budget: Budget) -> Plan:
        """The plan of least damage inside the budget. Where it narrows groups, one such plan is made for each limit of how
        narrow any may get, and the one whose widths are seen to change the outputs least is taken: the damage is local.
        With factors, plans are made from the scaled table as well.
        """
        plans: list[Plan] = []
        for costs in (table, weighed(table, self.cuts, self.factors)) if self.cuts and self.factors else (table,):
            for least in LIMITS if self.cuts else LIMITS[:1]:
                try:
                    plan = knapsack(limited(costs, self.cuts, least), budget)
                except BudgetError:
                    if not plans:
                        raise
                    break
                plans += [] if any(self._keep(plan) == self._keep(other) for other in plans) else [plan]
        if len(plans) == 1:
            return plans[0]
        narrower = narrowing(self.ground.model, self.ground.profile)
        lost = Lost(self.ground.model, [batch.inputs for batch in self.job.calibration])
        return min(plans, key=lambda plan: lost(narrower(self._keep(plan))))

    def _keep(self, plan: Plan) -> Keep:
        """The blocks that stay of the groups that a plan narrows."""
        return {
            cut.group.name: cut.blocks(int(plan.choice[cut.row]))
            for cut in self.cuts
            if int(plan.choice.get(cut.row, cut.group.blocks)) < cut.group.blocks
        }

    def _decisions(self, plan: Plan) -> Decisions:
        """A plan's choices, as the fit takes them."""
        keep = self._keep(plan)
        techniques = {
            m.name: technique_called(plan.choice[m.name]) for m in matrices(self.model) if plan.choice[m.name] != FLOAT
        }
        if not techniques:
            return Decisions(keep=keep)
        return Decisions(keep=keep, techniques=techniques | self._looked_up(keep), feeds="static")

    def _nothing(self) -> TersorError:
        """Why there is nothing to deliver: nothing runs, or nothing keeps the promise."""
        if self.bench.alive():
            return BudgetError(self._best_reached())
        tried = [t for t in self.bench.trials.values() if not t.candidate.reference]
        if tried and all(t.full for t in tried):
            return StorageError(str(tried[0].refused))
        refusals = [f"{t.name}: {t.refused}" for t in tried]
        if not refusals and self.failed and isinstance(self.failed[0], TersorError):
            return self.failed[0]
        return TargetError(" ".join(["No target can run this model here.", *refusals, *map(reason, self.failed)]))

    def _best_reached(self) -> str:
        """The nearest to the promise, and on which data it broke it: what loses too much on held-out data is not judged."""
        limit = f"{self.job.max_drop:.4g}"
        advice = "Allow a larger --max-drop, give more data, or choose another --target."
        held = {name: found for name in self.bench.alive() if (found := self.bench.on_held(name)) is not None}
        kept = [name for name, found in held.items() if found.within(self.job.max_drop)]
        judged = {name: found for name in kept if (found := self.bench.judge(name)) is not None}
        if judged:
            name = min(judged, key=lambda name: judged[name].amount)
            return f"No candidate is within the allowed drop of {limit}; the best is '{name}': {judged[name].text}. {advice}"
        if held:
            name = min(held, key=lambda name: held[name].amount)
            return (
                f"No candidate is within the allowed drop of {limit} on held-out data, on which candidates are selected, so "
                f"none was evaluated on the evaluation data; the best there was '{name}': {held[name].text}. {advice}"
            )
        refusals = " ".join(f"{t.name}: {t.refused}" for t in self.bench.trials.values() if t.refused is not None)
        return f"No candidate could be evaluated. {refusals}"


def technique() -> Technique:
    """How a matrix becomes int8 on this machine."""
    return GPTQ(bits=weight_bits())


def mostly_linear(model: Model) -> bool:
    """Whether linear layers hold more than half of the multiply-accumulates."""
    counted = macs(model)
    linear = {m.name for m in matrices(model) if m.convolution is None}
    return 2 * sum(counted[name] for name in linear) > sum(counted.values())


def _runs(target: Target, decisions: Decisions) -> bool:
    """Whether `target` is meant for a model that is fed as `decisions` say."""
    if decisions.feeds == "none":
        return target.precision == FLOAT
    return target.precision == "int8" and (decisions.feeds == "static" or target.dynamic_feeds)


def _label(target: Target) -> str:
    return " ".join(target_name(target))
