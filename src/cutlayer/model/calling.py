"""How a segment's module is called: as it is, compiled, in bfloat16, by weights that it had before."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from cutlayer.errors import RunError
from cutlayer.model.replica import Replica
from cutlayer.model.trace import shortened

Tensors = tuple[Tensor, ...]
NO_COMPILER = (
    "{segment} cannot be compiled here ({reason}): install a C++ compiler such as g++, or agree on a plan whose "
    "training.compiled leaves {segment} out"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calling:
    """`compiled`: by what `torch.compile` makes of the module; `autocast`: in bfloat16 where torch holds that safe.

    What comes out of autocast has the `dtypes` that cross; without those, floats have that of the module's own
    parameters, or of what it was called with. Float64 is never made less.
    """

    compiled: bool = False
    autocast: bool = False
    dtypes: tuple[torch.dtype, ...] = ()

    def __call__(self, name: str, replica: Replica, tensors: Tensors, stash: dict[str, Tensor] | None) -> Tensors:
        """What the segment `name` gives; by the weights of `stash` if there is one.

        Raises:
            RunError: it cannot be compiled here.
        """
        if not self.autocast:
            return self._called(name, replica, tensors, stash)
        with torch.autocast(replica.device.type, torch.bfloat16):
            outputs = self._called(name, replica, tensors, stash)
        dtypes = self.dtypes or (_own_dtype(replica, tensors),) * len(outputs)
        return tuple(
            output.to(dtype) if output.is_floating_point() else output
            for output, dtype in zip(outputs, dtypes, strict=True)
        )

    def _called(self, name: str, replica: Replica, tensors: Tensors, stash: dict[str, Tensor] | None) -> Tensors:
        if stash is not None:
            result = functional_call(replica.module, stash, tensors)
        elif self.compiled:
            result = _compiled(name, replica, tensors)
        else:
            result = replica.module(*tensors)
        return result if isinstance(result, tuple) else (result,)


PLAIN = Calling()


def _compiled(name: str, replica: Replica, tensors: Tensors) -> Tensor | Tensors:
    try:
        result: Tensor | Tensors = replica.compiled(*tensors)
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException  # takes a while, so only for those who compile

        if isinstance(error, TorchDynamoException):
            raise RunError(NO_COMPILER.format(segment=name, reason=shortened(error))) from error
        raise
    return result


def _own_dtype(replica: Replica, tensors: Sequence[Tensor]) -> torch.dtype:
    floats = (tensor.dtype for tensor in (*replica.module.parameters(), *tensors) if tensor.is_floating_point())
    return next(floats, torch.float32)
