"""train.parallel=fsdp: masters, moments and gradients divided among the ranks by torch's FSDP2.

Each rank holds a part of every parameter. A layer's weights are gathered, in the compute type,
when the pass comes to it, and its gradients are summed over the ranks into the parts. What computes
rollouts and old log-probs is a whole decoder beside them, filled once an update (optim.py): it
needs no word from other ranks, which draw for different lengths of time.
torch.distributed.fsdp takes a second to import, so only runs of several processes do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.checkpoint import optimizer_tensors
from trainer.model import Decoder
from trainer.world import World

if TYPE_CHECKING:
    from trainer.optim import Optimizer


def divide(model: Decoder, dtype: torch.dtype, world: World) -> None:
    """Divides the float32 parameters of `model` among the ranks; it computes in `dtype`.

    In place: the parameters become DTensors, under the same names. Gradients are summed, not
    averaged, in float32. Only its forward pass as a whole, and the head behind it, may be used.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(model.head_weight.device.type, (world.size,))
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # they are as the decoder makes them
    )
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    # The head is used behind the forward pass, and is the embedding where the two are tied.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum


def is_divided(model: torch.nn.Module) -> bool:
    """Whether its parameters are parts."""
    return hasattr(model, "reshard")  # of FSDPModule, which need not be imported to ask


def whole(tensor: Tensor) -> Tensor:
    """A divided tensor gathered, all ranks taking part; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def part_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a whole `tensor`, divided like `parameter`; as it is if that is whole."""
    if not hasattr(parameter, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        tensor.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


@torch.no_grad()
def fill(model: Decoder, weights: Mapping[str, Tensor]) -> None:
    """Copies whole weights, by name, into a model that is divided or not."""
    for name, parameter in model.named_parameters():
        parameter.copy_(part_like(weights[name], parameter))


def whole_state(
    model: Decoder, optimizer: Optimizer, world: World
) -> tuple[Decoder, dict[str, Tensor], dict[str, int]]:
    """(masters, AdamW's tensors, its step counts) as checkpoint.optimizer_tensors gives them.

    All ranks take part; of a divided model only rank 0 then has the tensors, on the CPU.
    """
    tensors, steps = optimizer_tensors(optimizer.adamw, dict(model.named_parameters()))
    if not is_divided(model):
        return optimizer.masters(), tensors, steps

    def collected(parts: Mapping[str, Any]) -> dict[str, Tensor]:
        found = {}
        for name, part in parts.items():
            gathered = whole(part.detach())
            if world.leads:
                found[name] = gathered.cpu()
        return found

    masters = Decoder(model.config, device="meta")
    masters.load_state_dict(collected(model.state_dict()), strict=world.leads, assign=True)
    return masters, collected(tensors), steps
