"""What `sensitivity` found: points, the page with their curves, and what they tell the planner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor import foreign
from tersor.errors import ArtifactError, InputError
from tersor.records import plain, record

GRANULARITIES = ("channels", "bits", "weights")
_MADE = b"&middot; Tersor sensitivity</title>"  # by which the page is known again
LEAST = 1e-9  # nats an item; less is rounding


@dataclass(frozen=True)
class Point:
    """One place made smaller: `amount` is the share of channels or weights removed, or the bits a weight.

    score: by entry ("" for a single number). damage: predicted, nats an item. seen: by how much the outputs moved, nats an
    item.
    """

    place: str
    granularity: str
    amount: float
    score: Mapping[str, float]
    damage: float
    seen: float


@dataclass(frozen=True)
class Sensitivity:
    """All points, and the score of the untouched model on the same items."""

    model: str
    metric: str
    lower: bool
    items: int
    before: Mapping[str, float]
    points: tuple[Point, ...]

    def loss(self, point: Point) -> float:
        """By how much the metric got worse, the worst entry counting."""
        sign = 1 if self.lower else -1
        return max(sign * (point.score[entry] - before) for entry, before in self.before.items())

    def places(self, granularity: str) -> list[tuple[str, list[Point]]]:
        """The points of each place, the most sensitive place first."""
        found: dict[str, list[Point]] = {}
        for point in self.points:
            if point.granularity == granularity:
                found.setdefault(point.place, []).append(point)
        return sorted(found.items(), key=lambda place: -sum(map(self.loss, place[1])))

    def factors(self, names: Sequence[str]) -> dict[str, float]:
        """How many times more the outputs move than predicted when a group alone is narrowed to about half its width.

        By group; what damage curves are scaled by. names: of the groups there are. Raises `InputError` where none was seen.
        """
        channels = [p for p in self.points if p.granularity == "channels"]
        half = {
            p.place: p for p in sorted(channels, key=lambda p: -abs(p.amount - 0.5))
        }  # the nearest comes last, and stays
        known = {n: max(half[n].seen, LEAST) / max(half[n].damage, LEAST) for n in names if n in half}
        if not known:
            where = f"names {next(iter(half))!r} and others" if half else "has no channels"
            raise InputError(
                f"sensitivity {where}, but this model can be pruned at {', '.join(names[:3]) or 'no place'}; give the output "
                "of `tersor sensitivity --granularity channels --json` for this model."
            )
        return known

    @staticmethod
    def of(given: Sensitivity | str | Path) -> Sensitivity:
        """Itself, or the file that `tersor sensitivity --json` wrote. Raises `InputError` for anything else."""
        if isinstance(given, Sensitivity):
            return given
        path = Path(given)
        wanted = "give what `tersor sensitivity MODEL --data DATA --json > FILE` writes"
        value = foreign.json_in(path, "file of sensitivity", InputError, wanted)
        try:
            found = record(Sensitivity, value, "sensitivity")
        except ArtifactError as cause:
            raise InputError(f"{path} is JSON, but not of a sensitivity; {wanted}.") from cause
        assert isinstance(found, Sensitivity)
        return found

    def to_json(self) -> dict[str, Any]:
        return plain(self)

    def to_html(self) -> str:
        """One self-contained page: no network, no script."""
        from jinja2 import Environment, StrictUndefined

        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        page = Path(__file__).with_name("sensed.html").read_text(encoding="utf-8")
        return environment.from_string(page).render(s=self, plots=[self._plot(g) for g in GRANULARITIES])

    def _plot(self, granularity: str) -> dict[str, Any]:
        """Curves of loss over amount, in a box of 100 x 40 for each place, the same scale for all."""
        places = self.places(granularity)
        worst = max((max(0.0, self.loss(p)) for _, points in places for p in points), default=0.0) or 1.0
        curves = []
        for name, points in places:
            steps = 100 / max(1, len(points) - 1)
            at = [(i * steps, 40 - 40 * max(0.0, self.loss(p)) / worst) for i, p in enumerate(points)]
            curves.append({"place": name, "line": " ".join(f"{x:.1f},{y:.1f}" for x, y in at), "points": points})
        return {"granularity": granularity, "worst": worst, "curves": curves}


def is_page(path: Path) -> bool:
    """Whether the file `path` is a page that `Sensitivity.to_html` made."""
    with path.open("rb") as file:
        return _MADE in file.read(4096)
