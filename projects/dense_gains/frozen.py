"""A linear segmentor on frozen features, block by block: logistic regression from a patch's token to its class.

Shape suffixes: N scenes, L patches of a scene, D channels, p pixels of a patch's side, K classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mkd_plugin.checkpoint import load_backbone
from mkd_plugin.models.students import VisibleViT
from projects.dense_gains.data import read_scenes
from projects.dense_gains.recipes import PIXELS
from projects.dense_gains.scenes import CLASSES
from projects.dense_gains.settings import Settings

PATCH = 8
ITERATIONS = 100


def linear_segmentor(checkpoint: str | None, seed: int, settings: Settings, root: Path) -> dict[str, list[float]]:
    """Train on the labelled scenes; return the mIoU of patches on training and test scenes after each block, per cent.

    Args:
        checkpoint: File of the network; None for random weights.
        seed: Of random weights.
        settings: Sizes.
        root: Folder of the scenes.
    """
    torch.manual_seed(seed)
    network = VisibleViT(arch=settings.arch, img_size=settings.side, patch_size=PATCH)
    if checkpoint is not None:
        load_backbone(network, checkpoint)
    network.eval()
    counts = dict(train=settings.labelled, test=settings.counts['test'])
    tokens, labels = {}, {}
    for split, count in counts.items():
        images, maps = read_scenes(root, split, count)
        tokens[split], labels[split] = block_tokens(network, images), patch_labels(maps).ravel()
    found: dict[str, list[float]] = dict(train=[], test=[])
    for block in range(len(network.layers)):
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS, tol=1e-3))
        probe.fit(tokens['train'][block], labels['train'])
        for split in found:
            found[split].append(round(mean_iou(labels[split], probe.predict(tokens[split][block])), 3))
    return found


@torch.no_grad()
def block_tokens(network: VisibleViT, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
    """Return the patch tokens after each block, (N · L, D), of images (N, H, W, 3)."""
    taps = tuple(f'block:{block}' for block in range(len(network.layers)))
    mean, std = (torch.tensor(PIXELS[name]).view(3, 1, 1) for name in ('mean', 'std'))
    parts: list[list[torch.Tensor]] = [[] for _ in taps]
    for start in range(0, len(images), 100):
        batch = (torch.from_numpy(images[start : start + 100]).permute(0, 3, 1, 2) - mean) / std
        out = network(batch, taps=taps)
        for part, tap in zip(parts, taps, strict=True):
            part.append(out.tokens(tap)[:, network.num_prefix :].flatten(0, 1))
    return [torch.cat(part).numpy() for part in parts]


def patch_labels(maps: npt.NDArray[np.uint8]) -> npt.NDArray[np.int_]:
    """Return the commonest class of each patch's pixels, (N, L), from label maps (N, H, W)."""
    count, height, width = maps.shape
    patches_NhpwP = maps.reshape(count, height // PATCH, PATCH, width // PATCH, PATCH)
    pixels_NLp = patches_NhpwP.transpose(0, 1, 3, 2, 4).reshape(count, -1, PATCH * PATCH)
    votes_NLK = np.stack([(pixels_NLp == label).sum(-1) for label in range(1 + len(CLASSES))], axis=-1)
    return votes_NLK.argmax(-1)


def mean_iou(labels: npt.NDArray[np.int_], predicted: npt.NDArray[np.int_]) -> float:
    """Compute the mean IoU over the classes that occur in either, per cent."""
    matrix = confusion_matrix(labels, predicted)
    both, union = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return 100 * float((both / union).mean())
