"""Names of parameters that every file format and every printed source can hold.

Module names may be any string without a dot; ONNX readers, safetensors' users and the source that torch prints of a graph
are less patient. What is no letter, digit or underscore becomes an underscore, everywhere and at once, when a model is
captured.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable

from torch import fx, nn

from tersor.errors import ModelError

_UNWRITABLE = re.compile(r"[\"\\\x00-\x1f\x7f]")  # torch writes names into source, between double quotes


def plain_name(name: str) -> str:
    """A dotted name, each part in letters, digits and underscores."""
    return ".".join(re.sub(r"\W", "_", part) for part in name.split("."))


def refuse_unwritable(module: nn.Module) -> None:
    """Raises `ModelError` where torch itself cannot write down a name of `module`."""
    for name in _names(module):
        if _UNWRITABLE.search(name):
            raise ModelError(
                f"The model has a layer or parameter called {name!r}; torch.export cannot write quotes, backslashes and "
                "control characters in names. Rename it."
            )


def make_plain(module: fx.GraphModule) -> None:
    """Rename what `plain_name` would call otherwise, two that would be called alike by numbers; warns of it."""
    renamed: dict[str, str] = {}
    for path, owner in list(module.named_modules()):
        for held in (owner._modules, owner._parameters, owner._buffers):
            for old in [n for n in held if n != plain_name(n)]:
                new = _free(plain_name(old), {*owner._modules, *owner._parameters, *owner._buffers})
                items = [(new if n == old else n, value) for n, value in held.items()]  # in the order they had
                held.clear()
                held.update(items)
                renamed[f"{path}.{old}" if path else old] = new
    if not renamed:
        return
    for node in module.graph.nodes:
        if node.op == "get_attr":
            node.target = _after(str(node.target), renamed)
    shown = [f"{name!r} is {_after(name, renamed)}" for name in list(renamed)[:3]]
    warnings.warn(
        f"Some layer names contain characters that files cannot hold; they are renamed: {', '.join(shown)}"
        f"{f' and {len(renamed) - 3} more' if len(renamed) > 3 else ''}.",
        stacklevel=1,
    )


def _after(name: str, renamed: dict[str, str]) -> str:
    parts = name.split(".")
    return ".".join(renamed.get(".".join(parts[: i + 1]), part) for i, part in enumerate(parts))


def _free(name: str, taken: Collection[str]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def _names(module: nn.Module) -> Iterable[str]:
    yield from (name for name, _ in module.named_modules())
    yield from (name for name, _ in module.named_parameters())
    yield from (name for name, _ in module.named_buffers())
