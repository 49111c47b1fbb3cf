"""A replica: one copy of a segment with all its state: parameters, buffers, optimizer, LR schedule.

One optimizer object serves a replica for the whole run. Optimizer and LR schedule bear their torch names.
"""

from collections.abc import Mapping
from hashlib import sha256

import torch
from torch import Tensor, nn, optim

from cutlayer.plan.plan import Method, Training

NOT_SPLIT = {
    "LBFGS": "it needs the loss again and again within one step, across the cut",
    "SparseAdam": "it needs sparse gradients, which do not cross",
}
NOT_SCHEDULES = {
    "ReduceLROnPlateau": "it needs a metric that only one party sees",
    "LambdaLR": "it needs a function, which a plan cannot carry",
    "MultiplicativeLR": "it needs a function, which a plan cannot carry",
    "SequentialLR": "it needs other schedule objects",
    "ChainedScheduler": "it needs other schedule objects",
    "LRScheduler": "it is only the base class",
}


class Replica:
    """A segment's module with its optimizer and LR schedule. A frozen module has neither."""

    def __init__(self, module: nn.Module, training: Training) -> None:
        self.module = module
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.round = 0
        self._every_step = False
        self.optimizer: optim.Optimizer | None = None
        self.schedule: optim.lr_scheduler.LRScheduler | None = None
        if self.parameters:
            self.optimizer = make_optimizer(training.optimizer, self.parameters)
        if self.optimizer is not None and training.lr_schedule is not None:
            self._every_step = training.lr_schedule.options.get("every", "round") == "step"
            self.schedule = make_schedule(training.lr_schedule, self.optimizer)

    def step(self, normaliser: float, number: int) -> None:
        """Divide the accumulated gradients by `normaliser` and step once; `number` is the run's round."""
        if self.optimizer is None:
            return
        self._enter_round(number)
        if normaliser != 1.0:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(normaliser)
        self.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        if self.schedule is not None and self._every_step:
            self.schedule.step()

    def _enter_round(self, number: int) -> None:
        while self.round < number:
            self.round += 1
            if self.schedule is not None and not self._every_step:
                self.schedule.step()


def make_optimizer(method: Method, parameters: list[nn.Parameter]) -> optim.Optimizer:
    """The optimizer that a plan names. Raises what torch raises for wrong arguments."""
    optimizer: optim.Optimizer = getattr(optim, method.name)(parameters, **method.options)
    return optimizer


def make_schedule(method: Method, optimizer: optim.Optimizer) -> optim.lr_scheduler.LRScheduler:
    """The LR schedule that a plan names; it moves on every round, or every step if `every = "step"`."""
    options = {name: value for name, value in method.options.items() if name != "every"}
    schedule: optim.lr_scheduler.LRScheduler = getattr(optim.lr_scheduler, method.name)(optimizer, **options)
    return schedule


def optimizer_names() -> list[str]:
    """The optimizers that a plan may name."""
    return sorted(_classes(optim, optim.Optimizer) - set(NOT_SPLIT) - {"Optimizer"})


def schedule_names() -> list[str]:
    """The LR schedules that a plan may name."""
    return sorted(_classes(optim.lr_scheduler, optim.lr_scheduler.LRScheduler) - set(NOT_SCHEDULES))


def _classes(module: object, base: type) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and not name.startswith("_")
    }


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in name order: equal if and only if all bits are."""
    digest = sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
