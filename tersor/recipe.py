"""What was decided, as a file: `plan.yaml`.

Re-applied with `--recipe` to the same model, data, versions and seed it gives the same model files, byte for byte.
Techniques are written as their `repr` and read back without evaluating anything.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import math
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import yaml

from tersor import criteria as criteria_room
from tersor import foreign
from tersor import techniques as techniques_room
from tersor.errors import RecipeError
from tersor.feeds import Feeds
from tersor.fitting import Decisions
from tersor.graph.branches import branches
from tersor.graph.model import Model
from tersor.maths import grid, pattern
from tersor.recovery.wish import Recovery
from tersor.site import groups, matrices, tables
from tersor.technique import Technique

VERSION = 1
_LONGEST = 1_000_000  # entries of a file
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
    data: Mapping[str, str] | None = None  # hashes of the items in any order, and of those calibrated on in theirs
    unchanged: bool = False  # not even the lossless rewrites were made

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
        found |= {} if self.data is None else {"data": dict(self.data)}
        found |= {"unchanged": True} if self.unchanged else {}
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


def open_recipe(path: Path, allow_code: bool = False) -> Recipe:
    """The recipe in a file. Raises `RecipeError`, also where it names code and `allow_code` does not allow that."""
    return read_recipe(foreign.text(path, "recipe", RecipeError, _ADVICE), allow_code)


def read_recipe(text: str, allow_code: bool = False) -> Recipe:
    """A recipe from a file's text. Raises `RecipeError` that names the entry that is wrong.

    allow_code: whether a training in it may name functions (`augment: file.py:function`), which then run as the user's own.
    """
    written = _yaml(text)
    if not isinstance(written, dict) or written.get("tersor_recipe") != VERSION:
        raise RecipeError(f"The recipe does not start with tersor_recipe: {VERSION}; {_ADVICE}.")
    try:
        decisions = None
        if "techniques" in written:
            decisions = Decisions(
                keep={str(g): tuple(int(i) for i in kept) for g, kept in written["keep"].items()},
                techniques={str(m): technique_called(t) for m, t in written["techniques"].items()},
                feeds=_feeds(written["feeds"]),
                bits=_whole(written, "bits", 1, 32, 8),
                ranges=str(written.get("ranges", "best")),
                drop=tuple(str(name) for name in written.get("drop", ())),
            )
        target = written["target"]
        return Recipe(
            tuple(str(target[part]) for part in TARGET if part != "placement" or part in target),
            decisions,
            _whole(written, "seed", 0, 2**32 - 1),
            _whole(written, "calibration_items", 0, 2**31),
            _whole(written, "threads", 0, 2**16),
            _recover(written.get("recover"), allow_code),
            _hashes(written.get("data")),
            written.get("unchanged", False) is True,
        )
    except RecipeError:
        raise
    except Exception as cause:  # whatever shape the file has instead
        raise RecipeError(f"The recipe lacks or misstates {foreign.said(cause)}; {_ADVICE}.") from cause


_ADVICE = "bring a plan.yaml that Tersor wrote"


def _yaml(text: str) -> Any:
    with foreign.reading("The recipe", RecipeError, _ADVICE):
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        for number, event in enumerate(yaml.parse(text, Loader=loader)):
            if isinstance(event, yaml.AliasEvent):  # a few lines of them unfold without end, and Tersor writes none
                raise RecipeError(f"The recipe repeats a part of itself by an alias; {_ADVICE}.")
            if number > _LONGEST:  # each takes hundreds of times the memory that it has characters
                raise RecipeError(f"The recipe has more than {_LONGEST} entries; {_ADVICE}.")
        return yaml.load(text, Loader=loader)


def _whole(written: Mapping[str, Any], name: str, least: int, most: int, standard: int | None = None) -> int:
    found = written[name] if standard is None else written.get(name, standard)
    if type(found) is not int or not least <= found <= most:
        raise RecipeError(f"The recipe says {name}: {found!r:.60}; expected a whole number from {least} to {most}.")
    return found


def other_data(recipe: Recipe, data: Mapping[str, str]) -> str | None:
    """What to say where a recipe is applied to other data than it was made from, by the hashes of `data`."""
    made = recipe.data or data  # recipes of before say nothing
    if made == data:
        return None
    if made["items"] == data["items"]:
        return (
            "The recipe was made from the same items in another order, and which of them are calibrated on goes by their "
            "order: the model will differ. Give them in a fixed order (a loader without shuffle) for the same files."
        )
    return "The recipe was made from other data: what it decided is applied, and the model will differ."


def _hashes(given: Any) -> dict[str, str] | None:
    if given is None:
        return None
    if not isinstance(given, dict) or given.keys() != {"items", "calibration"}:
        raise RecipeError(f"The recipe says data: {given!r}; wanted the hashes of items and calibration; {_ADVICE}.")
    return {str(k): str(v) for k, v in given.items()}


def _recover(given: Any, allow_code: bool) -> dict[str, Any] | None:
    if given is None:
        return None
    if not isinstance(given, dict) or not all(isinstance(v, str | int | float) for v in given.values()):
        raise RecipeError(
            f"The recipe says recover: {given!r:.100}; wanted the settings of a training: correct that line."
        )
    for name, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(
                f"The recipe says {name}: {value} under recover; wanted a finite number: correct that line."
            )
        if name == "augment" and ":" in str(value) and not allow_code:
            raise RecipeError(
                f"The recipe says augment: {value!r:.100} under recover, which would run that code; read it, and add "
                "--allow-code (in Python allow_code=True) where you trust it, or take the line out."
            )
    found = {str(k): v for k, v in given.items()}
    with foreign.reading("The training in the recipe", RecipeError, "correct what stands under recover"):
        Recovery.of(**found)
    return found


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
    except Exception as cause:  # the settings go to constructors, which may raise what they will
        raise RecipeError(f"{text!r:.100} is no technique: {foreign.said(cause)}.") from cause
    if not isinstance(value, Technique):
        raise RecipeError(f"{text!r:.100} is no technique; wanted one such as GPTQ(bits=8).")
    return value


def _built(node: ast.expr, constructors: dict[str, type]) -> Any:
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in constructors:
            raise ValueError(f"{ast.unparse(node.func)} is unknown")
        keywords = {str(k.arg): _built(k.value, constructors) for k in node.keywords}
        return constructors[node.func.id](*(_built(a, constructors) for a in node.args), **keywords)
    found = ast.literal_eval(node)
    if isinstance(found, float) and not math.isfinite(found):
        raise ValueError(f"{found} is no finite number")
    return found


def _constructors() -> Iterator[tuple[str, type]]:
    for module in [*_modules(techniques_room), *_modules(criteria_room), grid, pattern]:
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == module.__name__ and dataclasses.is_dataclass(kind):
                yield name, kind


def _modules(room: ModuleType) -> Iterator[ModuleType]:
    for module in pkgutil.iter_modules(room.__path__):
        yield importlib.import_module(f"{room.__name__}.{module.name}")
