"""What the processes of a run exchange: gradients, metrics, and small Python values."""

from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, distributed

T = TypeVar("T")


class Collective:
    """The processes of a run. Every method is called by all of them; with one process each is free.

    Python values travel through the host (gloo), whatever moves tensors, so that they never wait for a device.
    """

    def __init__(self, accelerator: Accelerator):
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.device = accelerator.device
        self._group: Any = distributed.new_group(backend="gloo") if self.world > 1 else None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.world == 1:
            return [value]
        values: list[T] = [value] * self.world
        distributed.all_gather_object(values, value, group=self._group)
        return values

    def from_first(self, value: T) -> T:
        """The first process's value."""
        if self.world == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def average_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Replaces the gradients by their means over the processes, in one all-reduce of one flat tensor.

        Its layout never changes, so neither does the order in which numbers are added: a resumed run repeats an
        uninterrupted one to the last bit. (DistributedDataParallel cuts its buckets anew after the first step of each
        process, and needs every parameter of a module to take part.) A parameter that got no gradient has gradient 0.
        """
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.world
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, of a tensor on the run's device."""
        if self.world > 1:
            distributed.all_reduce(values)
            values /= self.world
        return values

    def broadcast(self, tensors: list[Tensor]) -> None:
        """The first process's values replace those of all others."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor, src=0)
