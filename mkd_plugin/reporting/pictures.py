"""Pictures of networks: masked inputs, and what a student attends to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mkd_plugin.interop.student import LoadedStudent, load_student
from mkd_plugin.models.masking.guided import attention_of_cls
from mkd_plugin.structures import QueryKey


@torch.no_grad()
def attention_map_of_cls(student: LoadedStudent, images_BCHW: Tensor) -> Tensor:
    """What the cls token of the last block attends to, averaged over heads, (B, rows, columns); images are RGB in [0, 1]."""
    backbone = student.backbone
    logits = backbone(student.normalise(images_BCHW), taps=('logit:-1',)).taps['logit:-1']
    assert isinstance(logits, QueryKey)
    return attention_of_cls(logits, backbone.num_prefix).view(-1, *backbone.grid)


def plot_attention(checkpoints: Mapping[str, Path], folder: Path, out: Path, num_images: int = 8) -> None:
    """Draw, for one image of each of the first classes: input, a random 75 % masked input, and each network's attention.

    Args:
        checkpoints: Name of a row → checkpoint of a pre-training run.
        folder: Image folder with one sub-folder a class.
        out: PNG file.
        num_images: Columns.
    """
    students = {name: load_student(path) for name, path in checkpoints.items()}
    backbone = next(iter(students.values())).backbone
    files = [sorted(kind.glob('*.png'))[0] for kind in sorted(folder.iterdir())[:num_images]]
    size = backbone.image_hw[::-1]
    pictures = [np.asarray(Image.open(file).convert('RGB').resize(size, Image.Resampling.BICUBIC)) for file in files]
    images_BCHW = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    length = backbone.grid[0] * backbone.grid[1]
    order = np.random.default_rng(0).random((len(files), length)).argsort(axis=1)
    hidden = (
        (order >= length // 4).reshape(-1, *backbone.grid).repeat(backbone.patch_size, 1).repeat(backbone.patch_size, 2)
    )
    rows = {'input': images_BCHW.permute(0, 2, 3, 1).numpy()}
    rows['masked'] = np.where(hidden[..., None], 0.5, rows['input'])
    rows.update({name: attention_map_of_cls(student, images_BCHW).numpy() for name, student in students.items()})
    figure, axes = plt.subplots(len(rows), len(files), figsize=(len(files), len(rows) + 0.2), layout='constrained')
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, fontsize='small')
        for axis, picture in zip(line, row, strict=True):
            axis.imshow(picture, cmap=None if picture.ndim == 3 else 'magma')
            axis.set(xticks=[], yticks=[])
    figure.savefig(out, dpi=120)
    plt.close(figure)
