"""The protocol of a teacher, and how its network is frozen."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mkd_plugin.models.context import StudentContext
from mkd_plugin.models.vit import VisionTransformer
from mkd_plugin.structures import RegionTokens, TapSpec, TokenFeatures, TokenMask


def freeze(network: nn.Module, *, in_checkpoints: bool) -> None:
    """Turn every parameter of ``network`` into a buffer.

    A buffer moves with the model and is broadcast when DDP wraps it, but it is never optimised, never waited for by
    DDP's reducer and never sharded.

    Args:
        in_checkpoints: Whether the weights are saved. A stage's teacher must be; one that came from a file must not.
    """
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=in_checkpoints)
        if not in_checkpoints:
            module._non_persistent_buffers_set.update(module._buffers)


class Teacher(nn.Module):
    """What the algorithm asks of a teacher.

    A teacher never trains: it stays in eval mode and has no parameters. To write one, implement ``tap_spec`` and
    ``forward``.

    Args:
        student: The student; subclasses look at its grid, pixel statistics and weights.

    Attributes:
        sees_all: True if it gets the intact image, False if it gets the student's visible patches only.
    """

    sees_all: bool = True

    def __init__(self, *, student: StudentContext) -> None:
        super().__init__()

    def tap_spec(self, name: str) -> TapSpec:
        """What a tap gives. Raises ValueError if the teacher has no such tap."""
        raise NotImplementedError

    def forward(
        self, images_BCHW: Tensor, mask: TokenMask | None, taps: Sequence[str], region: RegionTokens | None = None
    ) -> TokenFeatures:
        """Features of the student's normalised images.

        Args:
            images_BCHW: The images.
            mask: The student's mask, if it is known; for a teacher that sees no more than the student.
            taps: What to compute.
            region: The only tokens that will be read, None for all; a teacher may leave out the others, or ignore this.
        """
        raise NotImplementedError

    def start_from(self, student: VisionTransformer) -> None:
        """Called when the student's first weights are known; a teacher that copies them does so here."""

    def train(self, mode: bool = True) -> Teacher:
        """A teacher stays in eval mode, whatever ``runner.model.train()`` says."""
        return super().train(False)


class StudentCopy(Teacher):
    """A teacher whose network has the student's architecture and is saved with the student."""

    network: VisionTransformer

    def __init__(self, *, student: StudentContext) -> None:
        super().__init__(student=student)
        self.network = copy.deepcopy(student.network)
        self.network.init_cfg = None  # its weights are the student's, not a file's
        freeze(self.network, in_checkpoints=True)
        self.train()

    @property
    def complete(self) -> bool:
        """Whether ``network``, as it is saved, is the present teacher."""
        return True

    def tap_spec(self, name: str) -> TapSpec:
        """As the student's."""
        return self.network.tap_spec(name)

    def start_from(self, student: VisionTransformer) -> None:
        """Copy the student's weights."""
        self._copy(student)

    @torch.no_grad()
    def _copy(self, student: VisionTransformer) -> None:
        weights = student.state_dict()
        for name, own in self.network.state_dict().items():
            own.copy_(weights[name])
