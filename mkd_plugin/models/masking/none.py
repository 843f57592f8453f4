"""No masking: plain knowledge distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from mkd_plugin.models.context import StudentContext
from mkd_plugin.models.lessons import Lessons
from mkd_plugin.models.masking.base import Masking
from mkd_plugin.registry import MODELS
from mkd_plugin.structures import TokenMask


@MODELS.register_module()
class NoMasking(Masking):
    """Shows every patch."""

    def __init__(self, *, student: StudentContext) -> None:
        super().__init__(student=student)
        self.num_visible = self.num_patches

    def forward(self, images_BCHW: Tensor, lessons: Lessons) -> TokenMask:
        """A mask that hides nothing."""
        hidden_BL = torch.zeros(len(images_BCHW), self.num_patches, dtype=torch.bool, device=images_BCHW.device)
        return TokenMask.from_hidden(hidden_BL, self.num_patches)
