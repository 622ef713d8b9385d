"""What is claimed, as one record: before and after, the plan, what changed, what was measured and on what machine.

The record is plain data: `to_json` and `from_json` are inverse, `to_html` is one page without network or script, `rows`
and `to_text` are the table that a terminal shows. Seconds, bytes and shares are stored; units are made when shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tersor.left_alone import LeftAlone
from tersor.records import plain, record
from tersor.units import count, ms, number, points, quantity, several, signed, size, spread

_UNLIKE = 0.95  # of a cosine: less is worth a word


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    low: float
    value: float
    high: float

    def excludes(self, x: float) -> bool:
        return x < self.low or x > self.high


@dataclass(frozen=True)
class ClassChange:
    """One class: items that carry the label, and the shares of them that were right."""

    label: int
    items: int
    before: float
    after: float


@dataclass(frozen=True)
class Example:
    """One item that changed most.

    `label` is None without labels. `loss` is the fall of the right answer's margin (classes), or the error's growth.
    `picture` is a PNG data URI where the input looks like an image, else "" and `numbers` holds its first values.
    """

    item: int
    label: int | None
    before: str
    after: str
    loss: float
    picture: str = ""
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class Watched:
    """What became of one output, whether or not the metric looks at it (`judged`; None where nobody knows).

    value: its `measure`, "cosine" or "share of equal values", to the original's. channel: of the channels whose values are far
    smaller than the others', the one with the least cosine.
    """

    output: str
    judged: bool | None
    measure: str
    value: float
    channel: int | None = None
    channel_cosine: float | None = None

    def words(self, metric: str) -> str:
        """One sentence; "" of an output of which the metric says it all."""
        of = f"the output '{self.output}'" if self.output else "the output"
        fit = f"{self.measure} with the original {number(self.value)}"
        alone = f" ({number(self.channel_cosine)} for its low-amplitude channel {self.channel})"
        quiet = "" if self.channel is None else alone
        if self.judged is False:
            return f"The budget does not cover {of}: {metric} does not look at it; {fit}{quiet}."
        if self.judged is None:
            return f"It is not known whether {metric} looks at {of}; {fit}{quiet}."
        if self.channel_cosine is not None and self.channel_cosine < _UNLIKE:
            return (
                f"Channel {self.channel} of {of}, whose values are much smaller than those of other channels, has a cosine of "
                f"{number(self.channel_cosine)} with the original."
            )
        return ""


@dataclass(frozen=True)
class Regression:
    """What changed item by item. Fields about classes are None or empty where the output is no classifier's.

    gained: items that became right; lost: items that became wrong; changed: decisions that differ, right or wrong.
    difference: accuracy after minus before, on the same items, with its paired bootstrap interval.
    divergence: mean KL(before || after), nats. error: root mean square of the output's change over that of the output.
    """

    items: int
    error: float
    agreement: float | None = None
    divergence: float | None = None
    changed: int | None = None
    gained: int | None = None
    lost: int | None = None
    difference: Interval | None = None
    classes: tuple[ClassChange, ...] = ()
    worst: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Figures:
    """One model as it was measured: `seconds` of one call on one batch, score by entry ("" for a single number)."""

    name: str
    score: Mapping[str, float] = field(default_factory=dict)
    seconds: Interval | None = None
    nbytes: int | None = None
    macs: int | None = None
    parameters: int | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Tried:
    """One candidate. `amount` is its drop as the budget counts it; `note` says why it was refused or left."""

    name: str
    seconds: float | None = None
    score: Mapping[str, float] = field(default_factory=dict)
    amount: float | None = None
    nbytes: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Layer:
    """One matrix: what was decided for it. `damage` is predicted, nats; widths are output channels."""

    name: str
    shape: tuple[int, ...]
    technique: str = "unchanged"
    bits: float = 32.0
    width_before: int | None = None
    width_after: int | None = None
    damage: float | None = None
    nbytes_before: int | None = None
    nbytes_after: int | None = None


@dataclass(frozen=True)
class Share:
    """What part of the multiply-adds of the original a layer takes, before and after."""

    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Executed:
    """The precision in which the runtime executed one heavy operator, and why not a lower one, where known."""

    name: str
    kind: str
    precision: str
    reason: str = ""


@dataclass(frozen=True)
class Compared:
    """A figure that was predicted, beside the measured one. `unit` is "seconds", "bytes", "nats", "share" or ""."""

    name: str
    predicted: float | None
    measured: float | None
    unit: str = ""


@dataclass(frozen=True)
class Spot:
    """A value after so many steps."""

    step: int
    value: float


@dataclass(frozen=True)
class Course:
    """How a training went: mean loss of each stretch of steps, and what was lost of the metric after each epoch, on held-out
    data, as the drop of the promise."""

    plan: str
    steps: int
    seconds: float
    losses: tuple[Spot, ...]
    judged: tuple[Spot, ...]


@dataclass(frozen=True)
class Report:
    """Everything that is claimed of an artifact.

    metric: its name; lower: less is better. drop: the sentence that says by how much it fell. budget: what may be
    lost, as a sentence; limit: the same as a number, in absolute points or relative as `drop` says.
    ratio: time after / time before; noise: the same of one file against itself. unchanged: the model as it was brought, in the
    runtime of `after`, where that is another file; runtime: its time / time before, what the runtime gave; compression: time
    after / its time, what compression gave; each with its verdict. target: what was chosen, its `repr`.
    left_alone: layers and parameters that are as they were, and why.
    cost: what it took to compress, "seconds" and "bytes" (peak memory). load: the machine's load average.
    """

    model: str
    metric: str
    before: Figures
    after: Figures
    lower: bool = False
    drop: str = ""
    budget: str = ""
    limit: float | None = None
    batch: int = 1
    threads: int = 0
    ratio: Interval | None = None
    noise: Interval | None = None
    verdict: str = ""
    rounds: int = 0
    target: str = ""
    tried: tuple[Tried, ...] = ()
    layers: tuple[Layer, ...] = ()
    unchanged: Figures | None = None
    runtime: Interval | None = None
    runtime_verdict: str = ""
    compression: Interval | None = None
    compression_verdict: str = ""
    time: tuple[Share, ...] = ()  # of reports made before 0.2: seconds, shared out by multiply-adds
    work: tuple[Share, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()
    regression: Regression | None = None
    outputs: tuple[Watched, ...] = ()
    training: tuple[Course, ...] = ()
    audit: tuple[Executed, ...] = ()
    compared: tuple[Compared, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    load: tuple[float, ...] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a number that is not finite becomes None."""
        return cast(dict[str, Any], plain(self))

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Report:
        """The report `to_json` gave. Raises `ArtifactError` where a field is missing, unknown or of a wrong type."""
        return cast(Report, record(Report, content, "report"))

    def heads(self) -> tuple[str, ...]:
        """What stands above the columns of `rows`."""
        middle = () if self.unchanged is None else (f"unchanged in {self.unchanged.name.partition(' (')[0]}",)
        return "", self.before.name, *middle, self.after.name, "change" if self.unchanged is None else "by compression"

    def rows(self) -> list[tuple[str, ...]]:
        """(what, before, unchanged, after, change) of the table, without the third where there is no `unchanged`; the change is
        from the one before `after`. Rows of which nothing is known are left out.
        """
        seen = [self.before, *([] if self.unchanged is None else [self.unchanged]), self.after]
        b, a = seen[-2:]
        found: list[tuple[str, ...]] = [
            *self._score_rows(len(seen)),
            (self._time_name(), *(_spread(f.seconds) for f in seen), self._gained()),
            ("file size", *(size(f.nbytes) for f in seen), _times(b.nbytes, a.nbytes, "smaller", "larger")),
            ("multiply-adds", *(count(f.macs) for f in seen), _times(b.macs, a.macs, "fewer", "more")),
            ("parameters", *(count(f.parameters) for f in seen), _times(b.parameters, a.parameters, "fewer", "more")),
            ("peak memory", *(size(f.memory) for f in seen), _times(b.memory, a.memory, "less", "more")),
        ]
        return [row for row in found if any(row[1:-1])]

    def speed(self) -> str:
        """The ratio of times in words, such as "1.78x faster [1.70, 1.85]"; "" where none was measured."""
        return faster(self.ratio, self.verdict)

    def shares(self) -> str:
        """What of the speed the runtime gave and what compression did, as a sentence; "" where they are not known apart."""
        if self.unchanged is None or self.runtime is None or self.compression is None:
            return ""
        return (
            f"Compared with {self.before.name}: {self.speed()}. Of that, from the runtime (unchanged model): "
            f"{faster(self.runtime, self.runtime_verdict)}; from compression: "
            f"{faster(self.compression, self.compression_verdict)}."
        )

    def _gained(self) -> str:
        return self.speed() if self.unchanged is None else faster(self.compression, self.compression_verdict)

    def executed(self) -> str:
        """Such as "18 of 21 heavy operators ran in int8; 3 in f32 (...)"; "" without an audit."""
        if not self.audit:
            return ""
        by = {p: [o for o in self.audit if o.precision == p] for p in dict.fromkeys(o.precision for o in self.audit)}
        ordered = sorted(by.items(), key=lambda item: -len(item[1]))
        (most, found), rest = ordered[0], ordered[1:]
        others = "".join(f"; {len(ops)} in {p} ({'; '.join(_reasons(ops))})" for p, ops in rest)
        return f"{len(found)} of {len(self.audit)} heavy operators ran in {most}{others}"

    def to_text(self) -> str:
        """The before/after table and what else fits a terminal, as plain text."""
        table = [self.heads(), *self.rows()]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
        lines.insert(1, "-" * max(len(line) for line in lines))
        said = [self.drop, self.shares(), self.executed(), *(f"Warning: {w}" for w in self.warnings), *self.notes]
        return "\n".join([*lines, "", *(s for s in said if s)]).rstrip() + "\n"

    def to_html(self) -> str:
        """One self-contained page: no network, no script; every string of the user's is escaped."""
        from jinja2 import Environment, StrictUndefined

        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.filters.update(
            ms=ms,
            size=size,
            count=count,
            points=points,
            number=number,
            quantity=quantity,
            signed=signed,
            several=several,
        )
        template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
        curves = [(course, _line(course.losses), _line(course.judged)) for course in self.training]
        return template.render(r=self, faster=faster, scatter=_scatter(self), classes=_class_bars(self), curves=curves)

    def _score_rows(self, columns: int) -> list[tuple[str, ...]]:
        found = []
        for entry, after in self.after.score.items():
            before = self.before.score.get(entry)
            name = f"{self.metric}[{entry}]" if entry else self.metric
            change = (
                ""
                if before is None
                else "the same"
                if abs(after - before) <= 1e-9 * abs(before)
                else f"{after - before:+.4g}"
            )
            found.append((name, *([number(before)] * (columns - 1)), number(after), change))
        return found

    def _time_name(self) -> str:
        return f"median time per batch of {self.batch}"


def _spread(seconds: Interval | None) -> str:
    return "" if seconds is None else spread(seconds.low, seconds.value, seconds.high)


def faster(ratio: Interval | None, verdict: str) -> str:
    """A ratio of times (below 1: faster) in words, factor and interval in the same unit: "1.78x faster [1.70, 1.85]"."""
    if ratio is None:
        return ""
    if not ratio.excludes(1.0) or verdict == "no difference":
        said = "no difference beyond the noise" if ratio.excludes(1.0) else "no measurable difference"
        return f"{said} [{1 / ratio.high:.2f}x, {1 / ratio.low:.2f}x]"
    if ratio.value < 1:
        return f"{1 / ratio.value:.2f}x faster [{1 / ratio.high:.2f}, {1 / ratio.low:.2f}]"
    return f"{ratio.value:.2f}x slower [{ratio.low:.2f}, {ratio.high:.2f}]"


def _times(before: float | None, after: float | None, less: str, more: str) -> str:
    if not before or not after:
        return ""
    times, word = (before / after, less) if after < before else (after / before, more)
    if times == 1:
        return "the same"
    if times >= 1.005:
        return f"{times:.2f}x {word}"
    return f"{100 * (times - 1):.1g} % {word}" if times >= 1.0005 else f"less than 0.1 % {word}"


def _reasons(operators: list[Executed]) -> list[str]:
    return list(dict.fromkeys(o.reason or "reason unknown" for o in operators))


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    name: str
    kind: str


@dataclass(frozen=True)
class _Scatter:
    points: tuple[_Point, ...]
    xs: tuple[tuple[float, str], ...]
    ys: tuple[tuple[float, str], ...]
    limit: float | None


def _scatter(report: Report) -> _Scatter | None:
    """Candidates by time (x, 0..1 from left) and drop (y, 0..1 from the top), with the budget's line."""
    found = [t for t in report.tried if t.seconds is not None and t.amount is not None]
    if len(found) < 2:
        return None
    times = [t.seconds or 0.0 for t in found]
    drops = [t.amount or 0.0 for t in found]
    right = 1.08 * max(times)
    reach = report.limit or 0.0
    # One ruined candidate must not flatten all others: what lies far outside the budget is drawn at the edge.
    top = min(max([*drops, 1.2 * reach, 1e-4]), max(4 * reach, sorted(drops)[len(drops) // 2], 1e-4)) * 1.05
    low = min([*drops, 0.0]) - 0.06 * top
    place = {
        t.name: (s / right, min(1.0, (d - low) / (top - low))) for t, s, d in zip(found, times, drops, strict=True)
    }
    kinds = {t.name: "chosen" if t.name == report.after.name else "other" for t in found}
    kinds |= {t.name: "original" for t in found if t.name == report.before.name}
    shown = tuple(
        _Point(*place[t.name], f"{t.name}: {ms(t.seconds)}, drop {points(t.amount)}", kinds[t.name]) for t in found
    )
    xs = tuple((x / right, ms(x)) for x in _ticks(0.0, right))
    ys = tuple(((y - low) / (top - low), f"{100 * y:.2g}") for y in _ticks(low, top))
    limit = None if report.limit is None else (reach - low) / (top - low)
    return _Scatter(shown, xs, ys, limit)


def _line(spots: tuple[Spot, ...]) -> str:
    """The points of a polyline, 300 wide and 80 high, from the least to the largest value."""
    if len(spots) < 2:
        return ""
    low, high = min(s.value for s in spots), max(s.value for s in spots)
    first, last = spots[0].step, spots[-1].step
    across = [300 * (s.step - first) / max(1, last - first) for s in spots]
    up = [80 - 80 * (s.value - low) / ((high - low) or 1.0) for s in spots]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, up, strict=True))


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 4
    step = 10 ** math.floor(math.log10(raw))
    step *= next(k for k in (1, 2, 5, 10) if k * step >= raw)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _class_bars(report: Report) -> list[tuple[ClassChange, float]]:
    """Classes, most changed first, with the change as a share of the largest change."""
    if report.regression is None:
        return []
    changes = report.regression.classes
    largest = max((abs(c.after - c.before) for c in changes), default=0.0) or 1.0
    return sorted(((c, (c.after - c.before) / largest) for c in changes), key=lambda pair: (pair[1], pair[0].label))
