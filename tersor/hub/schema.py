"""The JSON of an exported program, held against the schema that torch reads it by, field by field.

The schema is torch's own (`torch._export.serde.schema`), so that nothing is forgotten: every dataclass, union, list, number
and string is visited under the type that torch will read it as; a key that it does not know is refused. What a string may
hold is said for every field that is one: names become Python source, expressions are evaluated, targets are called, trees
import what they name. A field of a later torch about which nothing is said here is refused.
"""

from __future__ import annotations

import dataclasses
import enum
import keyword
import re
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch._export.serde import schema as serde
from torch._export.serde.union import _Union

from tersor import foreign
from tersor.hub import allowed, expressions

_LARGEST = 1 << 63
_STRUCTURES = frozenset(("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", "torch.Size"))
_LEAVES = 10_000
_PART = re.compile(
    r"\w[\w-]*"
)  # of a dotted name, which torch writes into source between quotes where it is no identifier
_SOURCES = re.compile(r"[\w@]+,[\w.]+(;[\w@]+,[\w.]+)*", re.ASCII)  # which torch looks up, and never calls
_METADATA = frozenset(("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "custom", "from_node"))
_REFUSED_CLASSES = ("CustomObjArgument", "TokenArgument", "InputTokenSpec", "OutputTokenSpec", "NamedTupleDef")

Said = Callable[[str], bool]


class Foreign(Exception):
    """Something that no plain program holds; its text is what it is."""


def is_name(text: str) -> bool:
    """Whether torch may write `text` into Python source as a name."""
    return text.isidentifier() and not keyword.iskeyword(text) and len(text) <= 500


def is_dotted(text: str) -> bool:
    """Whether `text` is a dotted name of a module or a parameter: `encoder.0.weight`."""
    parts = text.split(".")
    return len(text) <= 1000 and all(_PART.fullmatch(part) and not keyword.iskeyword(part) for part in parts)


def check_program(written: Any) -> None:
    """Raise `Foreign` where `written` is not the JSON of an exported program that only computes."""
    _check(serde.ExportedProgram, written, "program")
    version = written["schema_version"]["major"]
    if version != serde.SCHEMA_VERSION[0]:
        raise Foreign(f"the schema version {version} (this torch reads {serde.SCHEMA_VERSION[0]})")


def check_payload(written: Any) -> None:
    """Raise `Foreign` where `written` is not the JSON that says which file holds which tensor."""
    _check(serde.PayloadConfig, written, "tensors")


def _check(kind: Any, value: Any, place: str) -> None:
    """Walk `value` as torch will, as a value of the type `kind`."""
    kind = _resolved(kind)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is not None:
            _check(next(each for each in inner if each is not type(None)), value, place)
    elif origin is list:
        for each in _is(list, value, place):
            _check(inner[0], each, place)
    elif origin is dict:
        for name, each in _is(dict, value, place).items():
            _check_string(f"{place} key", name)
            _check(inner[1], each, place)
    elif isinstance(kind, type) and issubclass(kind, _Union):
        _check_union(kind, value)
    elif dataclasses.is_dataclass(kind):
        _check_dataclass(kind, value)
    else:
        _check_plain(kind, value, place)


def _check_union(kind: Any, value: Any) -> None:
    fields = _fields(kind)
    if len(_is(dict, value, kind.__name__)) != 1 or next(iter(value)) not in fields:
        raise Foreign(f"a {kind.__name__} that is {_short(list(value))}")
    name, each = next(iter(value.items()))
    _check(fields[name], each, f"{kind.__name__}.{name}")


def _check_dataclass(kind: Any, value: Any) -> None:
    if kind.__name__ in _REFUSED_CLASSES:
        raise Foreign(f"a {kind.__name__}, which is no tensor")
    fields = _fields(kind)
    _is(dict, value, kind.__name__)
    if strange := next((name for name in value if name not in fields), None):
        raise Foreign(f"{strange!r} in a {kind.__name__}")
    if lacking := next((f for f in _required(kind) if f not in value), None):
        raise Foreign(f"a {kind.__name__} without {lacking}")
    for name, each in value.items():
        _check(fields[name], each, f"{kind.__name__}.{name}")
    if (sources := value.get("metadata", {}).get("source_fn_stack")) and not _SOURCES.fullmatch(sources):
        raise Foreign(f"source_fn_stack {_short(sources)}")
    if kind is serde.Node:
        _check_node(value)
    elif kind is serde.ModuleCallSignature:
        check_tree(value["in_spec"], called=True)
        check_tree(value["out_spec"])
    elif kind is serde.RangeConstraint:
        for each in value.values():
            if each is not None and abs(each) > _LARGEST:
                raise Foreign(f"the range {each}")


def _check_node(node: Mapping[str, Any]) -> None:
    if why := allowed.why_not_arguments(node["target"], node["inputs"]):
        raise Foreign(f"target {node['target'][:80]!r}, which {why}")


def _check_plain(kind: Any, value: Any, place: str) -> None:
    if kind is str:
        _check_string(place, _is(str, value, place))
    elif kind is bool:
        _is(bool, value, place)
    elif kind is float:
        if isinstance(value, bool) or not (isinstance(value, int | float) or value in ("Infinity", "-Infinity", "NaN")):
            raise Foreign(f"{place} {_short(value)}")
    elif isinstance(kind, type) and issubclass(kind, int):
        if type(value) is not int or abs(value) > _LARGEST:
            raise Foreign(f"{place} {_short(value)}")
        if issubclass(kind, enum.IntEnum) and value not in {each.value for each in kind}:
            raise Foreign(f"{place} {value}")
    else:
        raise Foreign(f"{place}, of which this Tersor knows nothing")


def _check_string(place: str, text: str) -> None:
    if place == "Node.target":
        why = allowed.why_not(text)
        if why is not None:
            raise Foreign(f"target {text[:80]!r}, which {why}")
        return
    said = _STRINGS.get(place)
    if said is None or not said(text):
        field = place.removesuffix(" key").rpartition(".")[2]
        raise Foreign(f"{field if not place.endswith(' key') else 'name'} {text[:60]!r}")


def check_tree(text: str, called: bool = False) -> None:
    """Raise `Foreign` where `text` is no tree of tuples, lists and dicts; called: of (args, kwargs), whose names become
    source. (torch imports the module that an `__enum__` in a tree names, so a tree's context may hold words only.)"""
    if not text:
        return
    try:
        protocol, spec = foreign.strict_json(text)
    except (ValueError, TypeError) as cause:
        raise Foreign(f"a spec that is no tree ({_short(text)})") from cause
    if protocol != 1:
        raise Foreign(f"a tree of protocol {_short(protocol)}")
    keys = _check_spec(spec, [0])
    if called and keys is not None:
        kwargs = spec["children_spec"][1:2]
        names = _check_spec(kwargs[0], [0]) if kwargs and kwargs[0]["type"] == "builtins.dict" else []
        if strange := next((name for name in names or [] if not (isinstance(name, str) and is_name(name))), None):
            raise Foreign(f"in_spec with an argument called {_short(strange)}")


def _check_spec(spec: Any, count: list[int]) -> list[Any] | None:
    """Check a tree's node and those below; the keys where it is a dict, None where it is a leaf."""
    count[0] += 1
    if not isinstance(spec, dict) or set(spec) != {"type", "context", "children_spec"} or count[0] > _LEAVES:
        raise Foreign(f"in_spec that is no tree ({_short(spec)})")
    kind, below = spec["type"], spec["children_spec"]
    if not isinstance(below, list):
        raise Foreign(f"in_spec that is no tree ({_short(below)})")
    if kind is None:
        if spec["context"] is not None or below:
            raise Foreign("in_spec with a leaf that has leaves")
        return None
    if kind not in _STRUCTURES:
        raise Foreign(f"in_spec of the type {_short(kind)}")
    keys: list[Any] = []
    context = spec["context"]
    if context is not None:
        found = foreign.strict_json(context) if isinstance(context, str) else context
        if found is not None:
            if not isinstance(found, list) or not all(_is_key(key) for key in found) or kind == "builtins.tuple":
                raise Foreign(f"in_spec with the context {_short(context)}")
            keys = found
    for each in below:
        _check_spec(each, count)
    return keys


def _is_key(key: Any) -> bool:
    if isinstance(key, str):
        return len(key) <= 200 and key.isprintable() and not any(mark in key for mark in "\"'\\`")
    return type(key) is int and abs(key) < _LARGEST


def _is(kind: type, value: Any, place: str) -> Any:
    if type(value) is not kind:
        raise Foreign(f"{place} {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _resolved(kind: Any) -> Any:
    while True:
        if isinstance(kind, str | typing.ForwardRef):
            kind = getattr(serde, kind if isinstance(kind, str) else kind.__forward_arg__)
        elif typing.get_origin(kind) is typing.Annotated:
            kind = typing.get_args(kind)[0]
        else:
            return kind


@cache
def _fields(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, globalns=vars(serde))
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@cache
def _required(kind: Any) -> tuple[str, ...]:
    missing = dataclasses.MISSING
    every = dataclasses.fields(kind)
    return tuple(f.name for f in every if f.default is missing and f.default_factory is missing)


def _like(pattern: str) -> Said:
    compiled = re.compile(pattern, re.ASCII)
    return lambda text: compiled.fullmatch(text) is not None


def _free(text: str) -> bool:
    return True


def _name_or_none(text: str) -> bool:
    return text == "" or is_name(text)


def _module(text: str) -> bool:
    return text == "" or is_dotted(text.partition("@")[0])


def _word(text: str) -> bool:
    return len(text) <= 256 and text.isprintable() and not any(mark in text for mark in "\"'\\`")


_STRINGS: dict[str, Said] = {
    # names that torch writes into the source of the graph
    **dict.fromkeys(
        (
            "TensorArgument.name",
            "SymIntArgument.as_name",
            "SymFloatArgument.as_name",
            "SymBoolArgument.as_name",
            "GraphArgument.name",
            "InputToConstantInputSpec.name",
            "Graph.tensor_values key",
            "Graph.sym_int_values key",
            "Graph.sym_bool_values key",
            "Graph.sym_float_values key",
            "ModuleCallSignature.forward_arg_names",
            "GradientToUserInputSpec.user_input_name",
            "UserInputMutationSpec.user_input_name",
            "ExportedProgram.opset_version key",
        ),
        is_name,
    ),
    **dict.fromkeys(("NamedArgument.name", "Node.name"), _name_or_none),
    **dict.fromkeys(
        (
            "InputToParameterSpec.parameter_name",
            "InputToBufferSpec.buffer_name",
            "InputToTensorConstantSpec.tensor_constant_name",
            "BufferMutationSpec.buffer_name",
            "ParameterMutationSpec.parameter_name",
            "GradientToParameterSpec.parameter_name",
            "PayloadConfig.config key",
        ),
        is_dotted,
    ),
    "ModuleCallEntry.fqn": _module,
    "ExportedProgram.range_constraints key": expressions.is_symbol,
    "SymExpr.expr_str": expressions.is_arithmetic,
    "Device.type": _like("cpu|cuda"),
    "PayloadMeta.path_name": _like(r"(weight|tensor)_\d{1,9}"),
    "ExportedProgram.verifiers": _like("|ATEN|TRAINING"),
    "ExportedProgram.torch_version": _like(r"[\w.+<= -]{0,100}"),
    # words: checked against the operator's schema as well
    "Argument.as_string": _word,
    "Argument.as_strings": _word,
    "ConstantValue.as_string": _word,
    # where a node came from: nothing evaluates it
    "Node.metadata key": _METADATA.__contains__,
    "Node.metadata": _free,
    "GraphModule.metadata key": _METADATA.__contains__,
    "GraphModule.metadata": _free,
    # dropped unread
    "ExportedProgram.guards_code": _free,
    # trees, checked whole
    "ModuleCallSignature.in_spec": _free,
    "ModuleCallSignature.out_spec": _free,
}
"""What the string in each field may be; a field that is not here holds no string that is accepted."""
