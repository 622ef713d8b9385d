"""Parameters that are divided among processes: each holds some rows of them, of their gradients and of what an optimiser keeps.

A parameter is whole only while a pass reads it. What autograd would keep of it is made again in the backward pass; its gradient
is added up over the processes, and each gets its rows (reduce-scatter). Three messages of the parameter's size a pass, not two.
The messages are those of torch's DTensor.
Sources: Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO-3); Zhang et al. 2024, arXiv:2411.00284 (SimpleFSDP).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Self
from weakref import ref

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard

LEAST = 1 << 14
"""Values of the smallest parameter that is worth messages of its own."""


class Shards:
    """Which parameters of a module are divided among the processes of `torch.distributed`; none where there is one."""

    def __init__(self, module: nn.Module, device: torch.device, least: int | None):
        """Leave to this process its rows of each parameter that has `least` values and a row for every process; None: of none.
        device: where the module will compute."""
        self.shapes: dict[str, torch.Size] = {}  # of the whole
        if least is None:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)  # else the mesh takes one by its own rule
        self._mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for name, parameter in module.named_parameters():
            large = parameter.numel() >= least and parameter.ndim > 0 and len(parameter) >= self._mesh.size()
            if parameter.is_floating_point() and large:
                self.shapes[name] = parameter.shape
                parameter.data = self.part(name, parameter.data)

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This process' rows of what has the shape of parameter `name`."""
        if whole.shape != self.shapes.get(name):
            return whole
        parts = whole.chunk(self._mesh.size())  # as Shard(0) has it
        return parts[dist.get_rank()].clone() if dist.get_rank() < len(parts) else whole[:0].clone()

    def whole(self, name: str, part: Tensor) -> Tensor:
        """All of what processes hold rows of, which all of them must ask for; anything else as it is."""
        shape = self.shapes.get(name)
        if shape is None or part.ndim != len(shape):
            return part
        return _Whole.apply(part, self._mesh, shape)

    @torch.no_grad()
    def restore(self, module: nn.Module) -> None:
        """Make the parameters of a copy of the module whole, on the CPU."""
        for name, parameter in module.named_parameters():
            parameter.data = self.whole(name, parameter.data).cpu()

    def clip(self, parameters: Mapping[str, nn.Parameter], largest: float) -> None:
        """Scale gradients down to a norm, of all of them together."""
        if not self.shapes:
            nn.utils.clip_grad_norm_(parameters.values(), largest)
            return
        own, shared = (
            nn.utils.get_total_norm(
                [p.grad for n, p in parameters.items() if p.grad is not None and (n in self.shapes) == d]
            )
            for d in (True, False)
        )
        square = own.square()
        dist.all_reduce(square)
        nn.utils.clip_grads_with_norm_(parameters.values(), largest, (square + shared.square()).sqrt())

    def first(self, yes: bool) -> bool:
        """What the first process says."""
        return bool(self._agreed(yes and dist.get_rank() == 0, dist.ReduceOp.MAX)) if self.shapes else yes

    def all(self, yes: bool) -> bool:
        """Whether every process says so."""
        return bool(self._agreed(yes, dist.ReduceOp.MIN)) if self.shapes else yes

    def _agreed(self, yes: bool, how: Any) -> int:
        said = torch.tensor(int(yes))
        dist.all_reduce(said, how)
        return int(said)


class _Whole(torch.autograd.Function):
    """All rows of a parameter; backward, the sum of the gradients that each process has for all of them, where they belong."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, mesh: DeviceMesh, shape: torch.Size) -> Tensor:
        ctx.mesh = mesh
        stride = torch.empty(shape, device="meta").stride()
        rows = DTensor.from_local(part.contiguous(), mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
        return rows.full_tensor()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        terms = DTensor.from_local(gradient.contiguous(), ctx.mesh, [Partial()], run_check=False)
        return terms.redistribute(placements=[Shard(0)]).to_local(), None, None


class Gathered:
    """Whole values of parameters, made where a pass inside the context asks for them, and again where autograd would have
    kept them."""

    def __init__(self, value: Callable[[str], Tensor | None], halved: Collection[str]):
        """value: of a name, as often as it is asked for; None where a module's own will do. halved: those that are cast by
        whatever reads them under autocast."""
        self._value, self._halved = value, halved
        self._alive: dict[int, tuple[ref[torch.UntypedStorage], str]] = {}
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def __call__(self, name: str) -> Tensor | None:
        whole = self._value(name)
        if whole is None:
            return None
        kind = whole.device.type
        if (
            torch.is_autocast_enabled(kind) and name in self._halved
        ):  # here, for what autocast makes cannot be made again
            whole = whole.to(torch.get_autocast_dtype(kind))
        storage = whole.untyped_storage()
        self._alive[storage.data_ptr()] = ref(storage), name
        return whole

    def _pack(self, kept: Tensor) -> Any:
        storage, name = self._alive.get(kept.untyped_storage().data_ptr(), (None, ""))
        if storage is None or storage() is None:
            return kept
        return name, kept.dtype, kept.shape, kept.stride(), kept.storage_offset()

    @torch.no_grad()
    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        name, dtype, *laid = packed
        whole = self._value(name)
        assert whole is not None
        return whole.to(dtype).as_strided(*laid)
