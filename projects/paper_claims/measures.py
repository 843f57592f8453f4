"""Scores of a frozen network on all labels: a linear probe and k-NN."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from mmpretrain.registry import DATASETS
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import mkd_plugin
from mkd_plugin.checkpoint import load_backbone
from mkd_plugin.evaluation import knn_accuracy
from mkd_plugin.models.students import VisibleViT
from mkd_plugin.models.vit import VisionTransformer
from projects.paper_claims.settings import Settings

NEIGHBOURS = 20
IMAGE_SIZE, PATCH_SIZE = 24, 4
TAP = 'block:-1'

Labelled = tuple[Tensor, Tensor]  # features (N, D) or images (N, 3, H, W), and labels (N,)


def measure(checkpoint: str, settings: Settings, data_root: Path) -> dict[str, float]:
    """Train a linear probe and k-NN on all training labels; return their top-1 accuracy on ``val``, per cent."""
    network = VisibleViT(arch=settings.arch, img_size=IMAGE_SIZE, patch_size=PATCH_SIZE)
    load_backbone(network, checkpoint)
    network.eval()
    train, val = (split_features(network, data_root / split) for split in ('train', 'val'))
    count = min(NEIGHBOURS, len(train[1]))
    return dict(probe=probe_accuracy(train, val), knn=knn_accuracy(*train, *val, ks=[count])[count])


@lru_cache
def read_split(folder: Path) -> Labelled:
    """Read the images of a split with the validation pipeline of fine-tuning, normalised, and their labels."""
    cfg = mkd_plugin.get_config('dbot/finetune/digits/dbot-ft_digits')
    source = dict(data_root=str(folder.parent), data_prefix=folder.name)
    dataset = DATASETS.build(dict(cfg.val_dataloader.dataset, **source))
    mean, std = cfg.data_preprocessor.mean[0], cfg.data_preprocessor.std[0]
    images_N3HW = torch.stack([dataset[number]['inputs'] for number in range(len(dataset))]).float()
    return (images_N3HW - mean) / std, torch.from_numpy(np.asarray(dataset.get_gt_labels()))


@torch.no_grad()
def split_features(network: VisionTransformer, folder: Path) -> Labelled:
    """Average the last block's patch tokens, the input of the fine-tuned head, (N, D)."""
    images_N3HW, labels_N = read_split(folder)
    tokens = [network(batch, taps=(TAP,)).tokens(TAP)[:, network.num_prefix :] for batch in images_N3HW.split(240)]
    return torch.cat([tokens_BLD.mean(dim=1) for tokens_BLD in tokens]), labels_N


def probe_accuracy(train: Labelled, val: Labelled) -> float:
    """Train logistic regression on standardised channels to its optimum; return the accuracy in per cent.

    This is MAE's probe (BatchNorm without affine parameters, then linear). ``evaluation.train_probes`` is not used because it
    chooses the learning rate on the validation images: with only 357 of them this choice has as large an effect as the
    differences to be measured.
    """
    features, labels = ([part.numpy() for part in pair] for pair in zip(train, val, strict=True))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(features[0], labels[0])
    return 100 * float(probe.score(features[1], labels[1]))
