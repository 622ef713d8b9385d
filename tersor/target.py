"""Where the model runs.

A target is a frozen dataclass, one instance per way to run (`OpenVINO("bf16")`), with three methods. Everything it
cannot run natively is made dense first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:  # a delivered model is loaded and timed without torch
    from torch import Tensor

    from tersor.graph.model import Model
    from tersor.weight import Weight


@dataclass(frozen=True)
class Grid:
    """An affine grid for an activation: `real = scale * (code - zero)`, codes in [low, high].

    Runtimes have 8 bits; fewer are simulated.
    """

    scale: float
    zero: int
    low: int = 0
    high: int = 255

    @property
    def stored(self) -> bool:
        """Whether the activation is kept in its codes, for all that read it; else only matrices read it rounded."""
        return self.high - self.low == 255

    def round(self, x: Tensor) -> Tensor:
        """The nearest grid values."""
        return self.scale * ((x / self.scale + self.zero).round().clamp(self.low, self.high) - self.zero)


@dataclass(frozen=True)
class Dynamic:
    """An asymmetric 8-bit grid that is made at run time, from the least and largest value of each batch (and 0)."""


@dataclass(frozen=True, eq=False)
class Compressed:
    """A fitted model, ready for any target; equal only to itself.

    `model` holds the dense float32 values and gives the outputs that the decisions imply, but for the feeds.
    `weights` says, by parameter name, in which form a value is stored; what is not listed is dense.
    `feeds` gives, by graph node name, the grid through which that activation is read; what is not listed stays
    float, and float models list none. `Dynamic` is for linear layers: convolutions want a `Grid`.
    """

    model: Model
    weights: Mapping[str, Weight] = field(default_factory=dict)
    feeds: Mapping[str, Grid | Dynamic] = field(default_factory=dict)

    def tensors(self) -> Iterator[Tensor]:
        """All that it holds."""
        yield from (tensor for _, tensor in self.model.tensors())
        for weight in self.weights.values():
            yield from weight.tensors()


@dataclass(frozen=True)
class Operator:
    """One heavy operator (convolution, matrix product) as the runtime executes it."""

    name: str
    kind: str
    precision: str  # of the arithmetic: "f32", "bf16", "i8"
    reason: str = ""  # why not lower, where known


@dataclass(frozen=True)
class Audit:
    """The precision that every heavy operator ran in, read from the runtime's own graph."""

    operators: tuple[Operator, ...]

    def count(self, precision: str) -> int:
        return sum(o.precision == precision for o in self.operators)


@dataclass(frozen=True)
class Divergence:
    """The first activation whose codes differ between a runtime and our simulation of it."""

    node: str  # the ONNX value
    differing: int
    total: int
    steps: float  # the largest difference, in steps of the grid (of the output's unit where it is no code)


@dataclass(frozen=True)
class Fidelity:
    """How a runtime's outputs compare with our simulation of its exported file, on `items` items."""

    items: int
    agreement: float  # share of items with the same prediction
    largest: float  # largest difference of any output value
    parts: Divergence | None  # where they part first; None where they never do


@dataclass(frozen=True)
class Input:
    """An input of an exported model: its name, and one batch of it."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def variables(inputs: Sequence[Input]) -> list[str]:
    """What the inputs are called in code: their names where these can be variables' names."""
    names = [i.name if i.name.isidentifier() and not iskeyword(i.name) else f"input_{n}" for n, i in enumerate(inputs)]
    return [f"input_{n}" if name in TAKEN or names.count(name) > 1 else name for n, name in enumerate(names)]


TAKEN = ("np", "run", "opened", "outputs", "session", "onnxruntime", "torch", "Callable")
"""Names that the lines of a README use themselves."""


def described(inputs: Sequence[Input], kind: str = "numpy") -> str:
    """A comment line for each input: what it is called, its type and shape."""
    lines = zip(variables(inputs), inputs, strict=True)
    return "".join(f"# {variable}: {kind} {i.dtype} {list(i.shape)}\n" for variable, i in lines)


class Runner(ABC):
    """An exported model, loaded in its own runtime."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @abstractmethod
    def predict(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Flat outputs for flat inputs, first axis the batch."""

    @abstractmethod
    def call(self, *inputs: np.ndarray) -> Callable[[], object]:
        """What is timed: the call that the README's last line makes, with these inputs."""

    @abstractmethod
    def audit(self) -> Audit:
        """What the runtime really executes."""


class Target(ABC):
    """One way to run a model on this machine. Its fields are its settings; its `repr` is its name."""

    precision: str
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    """The values of `precision` that this target knows on some machine."""
    dynamic_feeds: ClassVar[bool] = False
    """Whether its int8 runs `Dynamic` feeds; where not, `export` refuses them and the search does not offer them."""
    folds_norms: ClassVar[bool] = False
    """Whether the runtime folds norms into weights by itself, so that the unchanged model is worth a try there."""
    compiles: ClassVar[bool] = False
    """Whether loading takes so long that, where time is short, others come first."""
    in_torch: ClassVar[bool] = False
    """Whether it runs in torch, as the original does: what it cannot survive ends this process anyway."""
    placement: str = "standard"
    placements: ClassVar[tuple[str, ...]] = ("standard",)
    """Ways to put activations on grids in int8 that are worth timing against each other here, the usual one first."""

    @abstractmethod
    def export(self, compressed: Compressed, folder: Path) -> None:
        """Write what the runtime loads into the existing, empty `folder`.

        Raises `ExportError` where the model cannot be expressed, `MissingRuntime` where the runtime is absent.
        """

    @abstractmethod
    def load(self, folder: Path, threads: int = 0) -> Runner:
        """Load what `export` wrote; `threads` 0 leaves the choice to the runtime. Raises `ArtifactError` on damage."""

    @abstractmethod
    def available(self) -> str | None:
        """None where this target can run here, else a sentence that says what is missing and what to install."""

    def fidelity(self, folder: Path, inputs: Sequence[np.ndarray]) -> Fidelity | None:
        """Compare the exported file's outputs with our simulation of it; None where the target runs floats."""
        return None

    def blame(self, compressed: Compressed) -> str:
        """Of a model that was exported and is then refused, the operator that the runtime cannot run, with the user's line
        where it is known; "" where that cannot be told."""
        return ""

    @abstractmethod
    def usage(self, inputs: Sequence[Input], outputs: Sequence[str], threads: int) -> str:
        """Python lines that run the exported folder without Tersor, for the artifact's README: the very code that `load`
        runs and that is timed, shown as it stands, called with the timed shapes and threads.

        They are run in the folder, read the inputs from variables that are called as `variables` says, and end with `outputs`.
        """
