"""Scores of a frozen network: a linear probe and k-NN, and how its attention looks."""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mkd_plugin.analysis.attention import attention_distance, attention_nmi, patch_distances
from mkd_plugin.checkpoint import load_backbone
from mkd_plugin.evaluation import draw_shots, knn_accuracy
from mkd_plugin.models.students import VisibleViT
from mkd_plugin.models.vit import VisionTransformer
from projects.paper_claims.data import Images, Labelled
from projects.paper_claims.settings import Settings

NEIGHBOURS = 20
TAP, RELATION = 'block:-1', 'logit:-1'
WATCHED_IMAGES = 500


def measure(checkpoint: str, settings: Settings, images: Images, root: Path) -> dict[str, float]:
    """Train a linear probe and k-NN on the training labels; return their top-1 accuracy on the test images, per cent.

    ``distance`` (pixels) and ``nmi`` are the mean attention distance and normalised mutual information of the last block.
    """
    network = VisibleViT(
        arch=settings.arch, img_size=images.side, patch_size=settings.patch, in_channels=images.channels
    )
    load_backbone(network, checkpoint)
    network.eval()
    train, test = (images.read(split, root) for split in ('train', 'test'))
    if settings.probed is not None:
        rows = draw_shots(train[1], settings.probed, 0)
        train = train[0][rows], train[1][rows]
    scores = attention(network, test[0][:WATCHED_IMAGES])
    train, test = features(network, train), features(network, test)
    count = min(NEIGHBOURS, len(train[1]))
    return dict(probe=probe_accuracy(train, test), knn=knn_accuracy(*train, *test, ks=[count])[count], **scores)


@torch.no_grad()
def features(network: VisionTransformer, images: Labelled) -> Labelled:
    """Average the last block's patch tokens, the input of the fine-tuned head, (N, D)."""
    parts = [network(batch, taps=(TAP,)).tokens(TAP)[:, network.num_prefix :].mean(1) for batch in images[0].split(240)]
    return torch.cat(parts), images[1]


@torch.no_grad()
def attention(network: VisionTransformer, images_NCHW: Tensor) -> dict[str, float]:
    """Mean attention distance (pixels) and NMI of the last block's heads, from patches to patches."""
    scores_BHNN = network(images_NCHW, taps=(RELATION,)).tokens(RELATION).softmax(-1)
    patches_BHLL = scores_BHNN[:, :, network.num_prefix :, network.num_prefix :]
    distances_LL = patch_distances(network.grid, network.patch_size)
    distance_BH = attention_distance(patches_BHLL, distances_LL, flavour='cl-vs-mim')
    return dict(distance=float(distance_BH.mean()), nmi=float(attention_nmi(patches_BHLL).mean()))


def probe_accuracy(train: Labelled, test: Labelled) -> float:
    """Train logistic regression on standardised channels to its optimum; return the accuracy in per cent.

    The solver is Newton's: on the features of 60,000 images, L-BFGS stopped at 500 iterations before the optimum.

    This is MAE's probe (BatchNorm without affine parameters, then linear). ``evaluation.train_probes`` is not used because it
    chooses the learning rate on the validation images: with only 357 of them this choice has as large an effect as the
    differences to be measured.
    """
    features, labels = ([part.numpy() for part in pair] for pair in zip(train, test, strict=True))
    probe = make_pipeline(StandardScaler(), LogisticRegression(solver='newton-cholesky')).fit(features[0], labels[0])
    return 100 * float(probe.score(features[1], labels[1]))
