"""Weights that stay in main memory and are on the device only while their layer runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def stream(module: nn.Module, device: torch.device) -> None:
    """Compute `module` on `device`, its weights coming layer by layer from where they are.

    What it needs on the device is the largest layer, not all of them. One caller at a time; results
    are those of the module moved to the device as a whole.
    """
    module.register_forward_pre_hook(lambda _, inputs: _moved(inputs, device))
    for layer in module.modules():
        if dict(layer.named_parameters(recurse=False)):
            _Visit(layer, device)


def _moved(inputs: tuple[Any, ...], device: torch.device) -> tuple[Any, ...]:
    return tuple(x.to(device) if isinstance(x, Tensor) else x for x in inputs)


class _Visit:
    """A layer's weights go to the device before it runs, and are forgotten there afterwards."""

    def __init__(self, layer: nn.Module, device: torch.device) -> None:
        self._device = device
        self._home = {
            name: parameter.data.pin_memory() if device.type == "cuda" else parameter.data
            for name, parameter in layer.named_parameters(recurse=False)
        }
        self._return(layer)
        layer.register_forward_pre_hook(self._go)
        layer.register_forward_hook(lambda layer, inputs, output: self._return(layer))

    def _go(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        for name, data in self._home.items():
            self._put(layer, name, data.to(self._device, non_blocking=True))
        return _moved(inputs, self._device)

    def _return(self, layer: nn.Module) -> None:
        for name, data in self._home.items():
            self._put(layer, name, data)

    def _put(self, layer: nn.Module, name: str, data: Tensor) -> None:
        # A parameter cannot change its device in place, a new one can take its name.
        setattr(layer, name, nn.Parameter(data, requires_grad=False))
