"""The clock: every contender in a process of its own, taking turns, with a control that shows the clock's own error.

Two runtimes in one process disturb each other by 2 to 10 times: their pools of threads go on spinning after a run. So
each contender has a process, and a process whose turn it is not is stopped (SIGSTOP), not merely idle. Rounds visit all
contenders in a new random order, so that a drift of the machine falls on all of them. A ratio is that of the medians;
its 95 % interval is a bootstrap over rounds, both sides drawn together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tersor import deadline
from tersor.errors import InputError, TargetError
from tersor.measuring.process import Process, Watch
from tersor.memory import CONTAINER, Room
from tersor.report import Interval

ENOUGH = 5  # rounds that tell the hopeless
WARM = 0.2  # seconds of calls before the first turn
AGAIN = " (again)"
"""Ends the name of the control: the same contender in a second process."""


@dataclass(frozen=True)
class Contender:
    """Something to time: `make` ("package.module:function") called with `arguments` (JSON) gives the call to time."""

    name: str
    make: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Race:
    """What a race measured.

    samples: seconds of one call, by contender, one entry a round (each the mean of the calls in one turn).
    control: the contender that ran twice, or None. memory: peak bytes of each process.
    load: the machine's load average over one minute, before and after. starts: how often every process was started anew,
    after the same number of rounds each; where it lies in memory may make a process a tenth slower for its whole life.
    """

    samples: Mapping[str, tuple[float, ...]]
    control: str | None
    load: tuple[float, float]
    threads: int
    memory: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    starts: int = 1

    @property
    def rounds(self) -> int:
        """Of those that went all the way."""
        return max((len(s) for s in self.samples.values()), default=0)

    def median(self, name: str) -> float:
        """Seconds of one call."""
        return float(np.median(self.samples[name]))

    def seconds(self, name: str) -> Interval:
        """Median seconds of one call, with its bootstrap interval."""
        (own,) = self._together(name)
        drawn = np.median(own[self._draws(len(own))], axis=1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        return Interval(float(low), self.median(name), float(high))

    def ratio(self, a: str, b: str) -> Interval:
        """Median of `a` over median of `b` (below 1: `a` is faster), with its paired bootstrap interval.

        Over the rounds that both were in.
        """
        ours, theirs = self._together(a, b)
        draws = self._draws(len(ours))
        drawn = np.median(ours[draws], axis=1) / np.median(theirs[draws], axis=1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        return Interval(float(low), float(np.median(ours) / np.median(theirs)), float(high))

    def noise(self) -> Interval | None:
        """The ratio of the control to itself: what this clock shows where there is no difference."""
        return None if self.control is None else self.ratio(self.control + AGAIN, self.control)

    def verdict(self, a: str, b: str) -> str:
        """ "faster" or "slower" where the interval excludes 1 and the control's own error, else "no difference"."""
        ratio, noise = self.ratio(a, b), self.noise()
        margin = 1.0 if noise is None else max(noise.value, 1 / noise.value)
        if ratio.high < 1 / margin:
            return "faster"
        return "slower" if ratio.low > margin else "no difference"

    def _together(self, *names: str) -> list[np.ndarray]:
        rounds = min(len(self.samples[name]) for name in names)
        return [np.array(self.samples[name][:rounds]) for name in names]

    def _draws(self, rounds: int, count: int = 4000) -> np.ndarray:
        """(count, rounds) numbers of rounds: starts drawn first, then rounds of each."""
        rng, starts = np.random.default_rng(self.seed), self.starts if rounds == self.rounds else 1
        each = rounds // starts
        drawn = rng.integers(starts, size=(count, starts, 1)) * each + rng.integers(each, size=(count, starts, each))
        return drawn.reshape(count, -1)


def race(
    contenders: Sequence[Contender],
    rounds: int = 50,
    seconds: float | None = None,
    control: str | None = None,
    threads: int = 2,
    timeout: float = 300.0,
    cores: Sequence[int] = (),
    turn: float = 0.01,
    seed: int = 0,
    behind: float | None = None,
    starts: int = 1,
    failures: dict[str, str] | None = None,
    room: Room = CONTAINER,
    apart: bool = False,
) -> Race:
    """Time the contenders against each other.

    rounds: turns for each. seconds: stop after so many, but not before 5 rounds. behind: who takes more than so many
    times as long as the fastest after 5 rounds is out, and keeps those rounds. starts: in how many parts, each with fresh
    processes, the rounds are made; several where small differences matter. control: the name of the contender
    to run in a second process as well. threads: what OMP_NUM_THREADS and its like are set to, 0 for not at all; a
    runtime with a setting of its own must be told in `arguments`. cores: the processors to run on; empty for all.
    timeout: seconds for one contender to load and warm up, or for one turn. turn: seconds that one turn lasts at least.
    Under a deadline (`tersor.deadline`) it ends early, with at least 5 rounds, or raises `TimeUp`.
    failures: takes up who failed and why, while the others go on, another in the place of a control that is out.
    room: the memory that there is; where all together hold more, the one that holds most fails. apart: no two are in memory
    at once; each makes all the rounds of a part in a row, in a new order each part.
    Raises `TargetError` with the end of its stderr where a contender fails and there is no `failures`, or nobody is left.
    """
    _check(contenders, control)
    before = os.getloadavg()[0]
    samples: dict[str, list[float]] = {}
    memory: dict[str, int] = {}
    shuffle = np.random.default_rng(seed)
    end = None if seconds is None else time.monotonic() + seconds
    made, begin = 0, time.monotonic()
    while made < starts and (not made or deadline.left() > 1.2 * (time.monotonic() - begin) / made):
        near = list(contenders) if not samples or behind is None else _near(contenders, samples, behind)
        settings = (threads, timeout, tuple(cores), turn, failures, Watch(room))
        made += 1
        try:
            if apart:
                control = _one_by_one(near, control, settings, samples, memory, -(-rounds // starts), shuffle, end)
            else:
                field = _Field(near, control, *settings)
                with field.started() as processes:
                    try:
                        _run(field, processes, samples, -(-rounds // starts), shuffle, end, behind)
                    finally:
                        memory |= {name: process.memory for name, process in processes.items()}
                control = field.control
        except deadline.TimeUp:
            running = {c.name for c in near} | {n for n in samples if n.endswith(AGAIN)}
            if any(len(samples.get(n, ())) < ENOUGH for n in running if n.removesuffix(AGAIN) not in (failures or ())):
                raise
            break
        contenders = [c for c in contenders if c.name not in (failures or ())]
    out = {name for each in failures or () for name in (each, each + AGAIN)}
    fixed = {name: tuple(values) for name, values in samples.items() if name not in out}
    known = control if control is not None and control + AGAIN in fixed else None
    return Race(fixed, known, (before, os.getloadavg()[0]), threads, memory, seed, made)


def _run(
    field: _Field,
    processes: Mapping[str, Process],
    samples: dict[str, list[float]],
    rounds: int,
    shuffle: np.random.Generator,
    end: float | None,
    behind: float | None,
) -> None:
    """One part of a race: turns of all, added to `samples`."""
    order = list(processes)
    for done in range(rounds):
        if end is not None and time.monotonic() > end and done >= ENOUGH:
            return
        if behind is not None and done == ENOUGH:
            order = [name for name in _fast(samples, behind) if name in processes]
        shuffle.shuffle(order)
        for name in order:
            deadline.check()
            if name in processes:
                with field.watched(name):
                    samples.setdefault(name, []).append(processes[name].turn())
        order = [name for name in order if name in processes]


def _one_by_one(
    contenders: Sequence[Contender],
    control: str | None,
    settings: tuple[Any, ...],
    samples: dict[str, list[float]],
    memory: dict[str, int],
    rounds: int,
    shuffle: np.random.Generator,
    end: float | None,
) -> str | None:
    """One part of a race in which each is alone, added to `samples` and `memory`; gives the control, another where it fails."""
    failures = settings[4]
    order = [contenders[i] for i in shuffle.permutation(len(contenders))]
    for contender in order:
        field = _Field([contender], None, *settings)
        try:
            with field.started() as processes:
                _run(field, processes, samples, rounds, shuffle, end, None)
                memory |= {name: process.memory for name, process in processes.items()}
        except TargetError:
            if failures is None or all(c.name in failures for c in contenders):
                raise
    alive = [c for c in order if c.name not in (failures or ())]
    if control is None:
        return None
    again = next((c for c in alive if c.name == control), alive[0])
    field = _Field([replace(again, name=again.name + AGAIN)], None, *settings)
    with suppress(TargetError), field.started() as processes:
        _run(field, processes, samples, rounds, shuffle, end, None)
    return again.name


def _fast(samples: Mapping[str, Sequence[float]], behind: float) -> list[str]:
    """Those whose best turn is at most `behind` times the best of all."""
    best = min(min(s) for s in samples.values() if s)
    return [name for name, s in samples.items() if s and min(s) <= behind * best]


def _near(contenders: Sequence[Contender], samples: Mapping[str, Sequence[float]], behind: float) -> list[Contender]:
    fast = _fast(samples, behind)
    return [c for c in contenders if c.name in fast]


class _Field:
    """The processes of one start. Who fails is out, with its second process where it has one."""

    def __init__(
        self,
        contenders: Sequence[Contender],
        control: str | None,
        threads: int,
        timeout: float,
        cores: tuple[int, ...],
        turn: float,
        failures: dict[str, str] | None,
        watch: Watch,
    ):
        names = [c.name for c in contenders]
        self.control = control if control is None or control in names or not names else names[0]
        self._contenders = contenders
        self._threads, self._timeout, self._cores, self._turn = threads, timeout, cores, turn
        self._failures, self._watch = failures, watch
        self._processes: dict[str, Process] = {}

    @contextmanager
    def started(self) -> Iterator[dict[str, Process]]:
        """The processes by name, ready for their turns."""
        with ExitStack() as stack:
            for c in self._contenders:
                self._load(stack, c.name, c)
            self._loaded()
            if self.control is not None:  # here, so that it is of one that loads
                alive = {c.name: c for c in self._contenders if c.name in self._processes}
                self.control = self.control if self.control in alive else next(iter(alive))
                self._load(stack, self.control + AGAIN, alive[self.control])
                self._loaded(self.control + AGAIN)
            for name in list(self._processes):
                if name in self._processes:
                    with self.watched(name):
                        self._processes[name].warm_up({"turn": self._turn, "warm": WARM})
            yield self._processes

    @contextmanager
    def watched(self, name: str) -> Iterator[None]:
        """What is done with one process. Raises `TargetError` where it fails and is not to be noted, or was the last."""
        try:
            yield
        except TargetError as cause:
            if self._failures is None:
                raise
            own = name.removesuffix(AGAIN)
            self._failures.setdefault(own, str(cause))
            for each in (own, own + AGAIN):
                process = self._processes.pop(each, None)
                if process is not None:
                    process.end()
            if all(c.name in self._failures for c in self._contenders):
                raise

    def _load(self, stack: ExitStack, name: str, contender: Contender) -> None:
        with self.watched(name):
            process = self._processes[name] = Process(name, self._threads, self._timeout, self._watch)
            self._watch.add(process)
            stack.callback(process.end)
            order = {"make": contender.make, "arguments": dict(contender.arguments), "cores": self._cores}
            process.load(order)

    def _loaded(self, *names: str) -> None:
        """Loading takes time and may be done by all at once; timing may not."""
        for name in names or list(self._processes):
            if name in self._processes:
                with self.watched(name):
                    self._processes[name].loaded()


def _check(contenders: Sequence[Contender], control: str | None) -> None:
    names = [c.name for c in contenders]
    if not names or len(set(names)) < len(names):
        raise InputError(f"A race needs contenders with different names; it was given {names}.")
    if control is not None and control not in names:
        raise InputError(f"The control {control!r} is none of the contenders {names}.")
