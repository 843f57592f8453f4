"""Scores of a frozen network that need no draw of labels: a linear probe and k-NN on all labels."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from mmpretrain.registry import DATASETS
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import mkd_plugin
from mkd_plugin import evaluation
from mkd_plugin.checkpoint import load_backbone
from mkd_plugin.models.students import VisibleViT
from mkd_plugin.models.vit import VisionTransformer
from reproduce.settings import Settings

__all__ = ['knn_accuracy', 'measure', 'probe_accuracy', 'read_split']

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Split = tuple[Floats, Ints]
NEIGHBOURS = 20


def measure(checkpoint: str, settings: Settings, data_root: Path) -> dict[str, float]:
    """Top-1 on the validation scans, per cent, of a probe and of k-NN that have all labels of the training split."""
    network = VisibleViT(arch=settings.arch, img_size=24, patch_size=4)
    load_backbone(network, checkpoint)
    network.eval()
    train, val = (split_features(network, data_root, split) for split in ('train', 'val'))
    return dict(probe=probe_accuracy(train, val), knn=knn_accuracy(train, val))


@lru_cache
def read_split(data_root: Path, split: str) -> tuple[Tensor, Ints]:
    """Normalised images (N, 3, 24, 24) through the pipeline that fine-tuning is validated with, and their labels."""
    cfg = mkd_plugin.get_config('dbot/finetune/digits/dbot-ft_digits')
    dataset = DATASETS.build(dict(cfg.val_dataloader.dataset, data_root=str(data_root), data_prefix=split))
    mean, std = cfg.data_preprocessor.mean[0], cfg.data_preprocessor.std[0]
    images = torch.stack([dataset[number]['inputs'] for number in range(len(dataset))])
    return (images.float() - mean) / std, np.asarray(dataset.get_gt_labels())


@torch.no_grad()
def split_features(network: VisionTransformer, data_root: Path, split: str) -> Split:
    """Mean of the last block's patch tokens, which fine-tuning starts from, (N, D); and labels."""
    images, labels = read_split(data_root, split)
    tap = 'block:-1'
    batches = [network(batch, taps=(tap,)).tokens(tap)[:, network.num_prefix :] for batch in images.split(240)]
    return torch.cat([tokens.mean(dim=1) for tokens in batches]).numpy(), labels


def probe_accuracy(train: Split, val: Split) -> float:
    """Logistic regression on standardised channels, per cent: MAE's probe (BatchNorm without affine, then linear) trained to
    its optimum.

    Not ``evaluation.train_probes``, which sweeps rates and reports the one that is best on the validation scans: with 357 of
    them that choice is worth as much as the differences that are asked for here.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(*train)
    return 100 * float(probe.score(*val))


def knn_accuracy(train: Split, val: Split) -> float:
    """20 neighbours by cosine, weighted with exp(similarity / 0.07), per cent."""
    count = min(NEIGHBOURS, len(train[1]))
    vectors_ND, labels_N, queries_MD, wanted_M = (torch.from_numpy(array) for array in (*train, *val))
    return evaluation.knn_accuracy(vectors_ND, labels_N, queries_MD, wanted_M, ks=[count])[count]
