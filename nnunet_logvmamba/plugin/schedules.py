"""How the learning rate falls, where nnU-Net's own schedule is not meant."""

from __future__ import annotations

from math import cos, pi

from torch import optim
from torch.optim.lr_scheduler import LRScheduler


class CosineSchedule(LRScheduler):
    """Learning rate per epoch: a linear rise in the first epochs, then half a cosine down to ``final_lr``.

    Args:
        optimizer: Whose learning rates are set.
        epochs: Length of the training.
        warm_up: Epochs until the rate is whole, of which the first has one ``warm_up``-th of it.
        final_lr: Rate that the last epoch comes near to.
    """

    last_epoch: int

    def __init__(self, optimizer: optim.Optimizer, epochs: int, warm_up: int, final_lr: float):
        self.epochs, self.warm_up, self.final_lr = epochs, warm_up, final_lr
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Set the rates of an epoch, by default the next one."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        for group, whole in zip(self.optimizer.param_groups, self.base_lrs):
            group["lr"] = self._rate(whole)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _rate(self, whole: float) -> float:
        if self.last_epoch < self.warm_up:
            return whole * (self.last_epoch + 1) / self.warm_up
        share = (self.last_epoch - self.warm_up) / max(1, self.epochs - self.warm_up)
        return self.final_lr + (whole - self.final_lr) * (1 + cos(pi * min(share, 1))) / 2
