"""What was decided, as a file: `plan.yaml`.

Re-applied with `--recipe` to the same model, data, versions and seed it gives the same model files, byte for byte.
Techniques are written as their `repr` and read back without evaluating anything.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, get_args

import yaml

from tersor import criteria as criteria_room
from tersor import techniques as techniques_room
from tersor.errors import RecipeError
from tersor.feeds import Feeds
from tersor.fitting import Decisions
from tersor.graph.branches import branches
from tersor.graph.model import Model
from tersor.maths import grid, pattern
from tersor.site import groups, matrices, tables
from tersor.technique import Technique

VERSION = 1
TARGET = ("file", "precision", "placement")


@dataclass(frozen=True)
class Recipe:
    """A decision that can be re-applied: where to run, what to fit, and what the fit depends on."""

    target: tuple[str, ...]  # file, precision, and the placement where it is not the standard one
    decisions: Decisions | None  # None: nothing lossy
    seed: int
    items: int  # calibration items
    threads: int
    recover: Mapping[str, Any] | None = None  # how it was trained afterwards: the words of a `Recovery`

    def to_yaml(self) -> str:
        """The file's text; the same recipe gives the same text."""
        return yaml.safe_dump(self.written(), sort_keys=False, width=120)

    def written(self) -> dict[str, Any]:
        """Plain values, in a fixed order."""
        found: dict[str, Any] = {
            "tersor_recipe": VERSION,
            "target": dict(zip(TARGET, self.target, strict=False)),
            "seed": self.seed,
            "calibration_items": self.items,
            "threads": self.threads,
        }
        found |= {} if self.decisions is None else plain(self.decisions)
        return found if self.recover is None else found | {"recover": dict(self.recover)}


def plain(decisions: Decisions) -> dict[str, Any]:
    """Decisions as plain values, in a fixed order."""
    return {
        "feeds": decisions.feeds,
        **({"bits": decisions.bits} if decisions.bits < 8 else {}),
        **({"ranges": decisions.ranges} if decisions.ranges != "best" else {}),
        "techniques": {name: repr(technique) for name, technique in sorted(decisions.techniques.items())},
        "keep": {name: list(kept) for name, kept in sorted(decisions.keep.items())},
        **({"drop": sorted(decisions.drop)} if decisions.drop else {}),
    }


def refuse_strangers(decisions: Decisions, model: Model) -> None:
    """Raise `RecipeError` where decisions name layers, groups or blocks that `model` does not have."""
    layers = {m.name for m in (*matrices(model), *tables(model))}
    axes = {g.name: g.blocks for g in groups(model) if g.refused is None}
    strange = [f"the layer {name}" for name in decisions.techniques if name not in layers]
    strange += [f"the prunable group {name}" for name in decisions.keep if name not in axes]
    if decisions.drop:
        known = {branch.name for branch in branches(model)}
        strange += [f"the residual branch {name}" for name in decisions.drop if name not in known]
    for name, kept in decisions.keep.items():
        if name in axes and not (kept and set(kept) <= set(range(axes[name]))):
            strange.append(f"blocks of the group {name} outside 0..{axes[name] - 1}")
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise RecipeError(
            f"The recipe names {', '.join(strange[:3])}{more}, which this model does not have; bring the model that the "
            "recipe was made for (`tersor inspect` lists layers and groups), or compress without --recipe."
        )


def read_recipe(text: str) -> Recipe:
    """A recipe from a file's text. Raises `RecipeError` that names the entry that is wrong."""
    try:
        written = yaml.safe_load(text)
    except yaml.YAMLError as cause:
        raise RecipeError(f"The recipe is no YAML: {str(cause).splitlines()[0]}.") from cause
    if not isinstance(written, dict) or written.get("tersor_recipe") != VERSION:
        raise RecipeError(
            f"The recipe does not start with tersor_recipe: {VERSION}; bring a plan.yaml that Tersor wrote."
        )
    try:
        decisions = None
        if "techniques" in written:
            decisions = Decisions(
                keep={str(g): tuple(int(i) for i in kept) for g, kept in written["keep"].items()},
                techniques={str(m): technique_called(t) for m, t in written["techniques"].items()},
                feeds=_feeds(written["feeds"]),
                bits=int(written.get("bits", 8)),
                ranges=str(written.get("ranges", "best")),
                drop=tuple(str(name) for name in written.get("drop", ())),
            )
        target = written["target"]
        return Recipe(
            tuple(str(target[part]) for part in TARGET if part != "placement" or part in target),
            decisions,
            int(written["seed"]),
            int(written["calibration_items"]),
            int(written["threads"]),
            _recover(written.get("recover")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise RecipeError(f"The recipe lacks or misstates {cause}; bring a plan.yaml that Tersor wrote.") from cause


def _recover(given: Any) -> dict[str, Any] | None:
    if given is None:
        return None
    if not isinstance(given, dict) or not all(isinstance(v, str | int | float) for v in given.values()):
        raise RecipeError(f"The recipe says recover: {given!r}; wanted the settings of a training: correct that line.")
    return {str(k): v for k, v in given.items()}


def _feeds(given: Any) -> Feeds:
    kinds: tuple[Feeds, ...] = get_args(Feeds)
    for kind in kinds:
        if given == kind:
            return kind
    raise RecipeError(f"The recipe says feeds: {given!r}; wanted one of {', '.join(kinds)}: correct that line.")


def technique_called(text: str) -> Technique:
    """The technique that `text` is the repr of, without evaluating it. Raises `RecipeError`."""
    try:
        value = _built(ast.parse(text, mode="eval").body, dict(_constructors()))
    except (SyntaxError, ValueError, TypeError) as cause:
        raise RecipeError(f"{text!r} is no technique: {cause}.") from cause
    if not isinstance(value, Technique):
        raise RecipeError(f"{text!r} is no technique; wanted one such as GPTQ(bits=8).")
    return value


def _built(node: ast.expr, constructors: dict[str, type]) -> Any:
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in constructors:
            raise ValueError(f"{ast.unparse(node.func)} is unknown")
        keywords = {str(k.arg): _built(k.value, constructors) for k in node.keywords}
        return constructors[node.func.id](*(_built(a, constructors) for a in node.args), **keywords)
    return ast.literal_eval(node)


def _constructors() -> Iterator[tuple[str, type]]:
    for module in [*_modules(techniques_room), *_modules(criteria_room), grid, pattern]:
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == module.__name__ and dataclasses.is_dataclass(kind):
                yield name, kind


def _modules(room: ModuleType) -> Iterator[ModuleType]:
    for module in pkgutil.iter_modules(room.__path__):
        yield importlib.import_module(f"{room.__name__}.{module.name}")
