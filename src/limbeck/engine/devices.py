"""Devices, precision and strategies: Lightning Fabric set up from a recipe's ``train`` block."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from limbeck.errors import UserError

logging.getLogger("lightning_fabric").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Placement:
    """Where and in which precision a run computes, as its recipe's ``train`` block says."""

    accelerator: str = "auto"
    devices: int | str = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    compile: bool = False


def launch(placement: Placement) -> Fabric:
    """A launched Fabric for the placement. Several processes are those of ``torchrun`` (``limbeck run`` starts them).

    Raises:
        UserError: the machine lacks what was asked for, or several processes were asked for in a single one.
    """
    accelerator = placement.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("train.accelerator is cuda, but this machine has no CUDA device; say cpu or auto")
    if accelerator == "cpu" and placement.precision == "16-mixed":
        raise UserError("train.precision 16-mixed needs a GPU; on a CPU use 32-true or bf16-mixed")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    wanted = wanted_processes(placement)
    if world == 1 and wanted > 1:
        raise UserError(
            f"train.devices asks for {wanted} processes and this is a single one: use `limbeck run` or `torchrun`"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fabric = Fabric(
            accelerator=accelerator,
            devices=max(world // max(placement.nodes, 1), 1),
            num_nodes=placement.nodes,
            strategy=_strategy(placement, world, accelerator),
            precision=placement.precision,  # type: ignore[arg-type]
        )
        fabric.launch()
    return fabric


def wanted_processes(placement: Placement) -> int:
    """How many processes per node the placement asks for (``devices: auto`` is every GPU, one process on a CPU)."""
    if placement.devices == "auto":
        usable = torch.cuda.is_available() and placement.accelerator != "cpu"
        return torch.cuda.device_count() if usable else 1
    return int(placement.devices)


def _strategy(placement: Placement, world: int, accelerator: str) -> Any:
    if placement.strategy == "fsdp":
        if world == 1:
            raise UserError("train.strategy fsdp needs several processes: set train.devices to 2 or more")
        return ModelParallelStrategy(shard, data_parallel_size=world, tensor_parallel_size=1)
    if world > 1:
        backend = "nccl" if accelerator == "cuda" else "gloo"
        return DDPStrategy(process_group_backend=backend, find_unused_parameters=True)
    return "auto"


def wrapped(module: nn.Module, fabric: Fabric) -> nn.Module:
    """A module as its strategy and precision need it, on its device.

    Alone and in full precision that is the module itself: Fabric's wrapper would do nothing but walk through the inputs
    and outputs of every call, which costs more than the call of a small network.
    """
    alone = type(fabric.strategy) is SingleDeviceStrategy and fabric.strategy.precision.precision == "32-true"
    return module.to(fabric.device) if alone else fabric.setup_module(module)


def to_device(batch: Any, device: torch.device) -> Any:
    """The tensors of a batch (a map, however deep) on a device; what is no tensor stays as it is."""
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=device.type == "cuda")
    return {k: to_device(v, device) for k, v in batch.items()} if isinstance(batch, dict) else batch


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are; the CPU for one without any."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard a module over the data-parallel mesh with FSDP2: each repeated block on its own, then the rest.

    A module whose forward calls a part of a block from outside of it names that in ``called_apart``, by its path; the
    part is gathered by itself.
    """
    from torch.distributed.fsdp import fully_shard

    data = mesh["data_parallel"]
    for part in [m.get_submodule(path) for m in module.modules() for path in getattr(m, "called_apart", ())]:
        fully_shard(part, mesh=data)
    for block in dict.fromkeys(repeated_blocks(module)):
        fully_shard(block, mesh=data)
    return fully_shard(module, mesh=data)  # type: ignore[return-value]


def repeated_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The entries of a network's lists of modules that have parameters; lists within them belong to their block."""
    for child in module.children():
        if not isinstance(module, nn.ModuleList) or isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from repeated_blocks(child)
        elif any(True for _ in child.parameters()):
            yield child
