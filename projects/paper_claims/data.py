"""The images of an experiment: scikit-learn's digits, or Fashion-MNIST as mmpretrain reads it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS
from torch import Tensor

import mkd_plugin
from mkd_plugin.datasets import draw_labelled, write_digits
from mkd_plugin.evaluation import draw_shots

FINETUNING = 'dbot/finetune/digits/dbot-ft_digits'
LOADERS = ('train_dataloader', 'val_dataloader')

Labelled = tuple[Tensor, Tensor]  # images (N, C, H, W) or features (N, D), and labels (N,)


class Images(Protocol):
    """The images that all runs of an experiment share; configs are those of the shipped digits until they are adapted."""

    side: int  #: Pixels
    channels: int
    root: str  #: Default folder

    def prepare(self, root: Path) -> Path:
        """Write the images if they can be written, and return their folder."""

    def adapt(self, cfg: Config) -> None:
        """Make a config of the digits one of these images, without paths."""

    def place(self, cfg: Config, root: Path) -> None:
        """Set the folder of the images."""

    def label(self, cfg: Config, root: Path, labels: int | None, draw: int) -> None:
        """Choose the labelled images of a fine-tuning: ``labels`` of each class, or all."""

    def read(self, split: str, root: Path) -> Labelled:
        """Read the images of 'train' or 'test' as a validation reads them, normalised, and their labels."""


class Digits:
    """1,797 scans of handwritten digits, written as files."""

    side, channels, root = 24, 3, 'data/digits'

    def prepare(self, root: Path) -> Path:
        """Write the scans unless they exist."""
        return write_digits(root)

    def adapt(self, cfg: Config) -> None:
        """Change nothing."""

    def place(self, cfg: Config, root: Path) -> None:
        """Set the folder of the images."""
        for loader in LOADERS:
            if cfg.get(loader):
                cfg[loader].dataset.data_root = str(root)

    def label(self, cfg: Config, root: Path, labels: int | None, draw: int) -> None:
        """Write the list of labelled images."""
        assert labels is not None
        cfg.train_dataloader.dataset.ann_file = str(draw_labelled(root, labels, draw).relative_to(root))

    def read(self, split: str, root: Path) -> Labelled:
        """Read a split with the validation pipeline of fine-tuning."""
        return read_digits(root / dict(train='train', test='val')[split])


class Fashion:
    """Fashion-MNIST: 60,000 and 10,000 grey images of 28 pixels of ten kinds of clothing.

    A mirrored piece of clothing is one, so pre-training and fine-tuning mirror half of the images.
    """

    side, channels, root = 28, 1, 'data/fashion-mnist'
    mean, std = 72.9, 90.0  # of the training images
    crop = (0.7, 1.0)  # share of the area; after smaller ones the intact test images score worse

    def prepare(self, root: Path) -> Path:
        """Return the folder. mmpretrain downloads missing files: here, before several workers would. Raises ValueError."""
        init_default_scope('mmpretrain')
        try:
            DATASETS.build(self.dataset('test', str(root), []))
        except (OSError, RuntimeError, AssertionError) as error:
            raise ValueError(
                f'Fashion-MNIST is not in {root} and cannot be downloaded ({error}). Put its four files there, unpacked: '
                'train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte.'
            ) from error
        return root

    def adapt(self, cfg: Config) -> None:
        """Replace data sets, sizes and pixel statistics."""
        cfg.model.backbone.update(img_size=self.side, in_channels=self.channels)
        pixels = dict(mean=[self.mean], std=[self.std], to_rgb=False)
        cfg.data_preprocessor = {
            **{k: v for k, v in cfg.data_preprocessor.items() if k in ('type', 'num_classes')},
            **pixels,
        }
        for teacher in (cfg.model.get('teachers') or {}).values():
            for network in (teacher, teacher.get('start')):
                if isinstance(network, dict) and 'pixel_mean' in network:
                    network.update(pixel_mean=[self.mean], pixel_std=[self.std])
        for loader, split in zip(LOADERS, ('train', 'test'), strict=True):
            if cfg.get(loader):
                old = cfg[loader].dataset
                steps = [rescaled(step, self.side, self.crop) for step in old.pipeline[1:] if step['type'] != 'Resize']
                cfg[loader].dataset = self.dataset(
                    split, '', [mirrored for step in steps for mirrored in with_flip(step)]
                )
                cfg[loader].dataset.indices = old.get('indices')
                if split == 'test':
                    cfg[loader].batch_size = 500

    def dataset(self, split: str, root: str, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the config of mmpretrain's data set."""
        return dict(type='FashionMNIST', data_root=root, split=split, test_mode=split == 'test', pipeline=pipeline)

    def place(self, cfg: Config, root: Path) -> None:
        """Set the folder of the images."""
        Digits.place(self, cfg, root)  # type: ignore[arg-type]

    def label(self, cfg: Config, root: Path, labels: int | None, draw: int) -> None:
        """List the labelled images."""
        dataset = cfg.train_dataloader.dataset
        dataset.indices = None if labels is None else draw_shots(read_fashion('train', root)[1], labels, draw).tolist()

    def read(self, split: str, root: Path) -> Labelled:
        """Read a split."""
        return read_fashion(split, root)


def rescaled(step: dict[str, Any], side: int, crop: tuple[float, float] | None) -> dict[str, Any]:
    """Change the size of crops; those of a contrastive method's views keep their share of the area."""
    if step['type'] == 'MultiView':
        return dict(step, transforms=[[rescaled(inner, side, None) for inner in view] for view in step['transforms']])
    if step['type'] != 'RandomResizedCrop':
        return dict(step)
    return dict(step, scale=side, crop_ratio_range=crop or step['crop_ratio_range'])


def with_flip(step: dict[str, Any]) -> list[dict[str, Any]]:
    """Mirror half of the images after they are cropped."""
    flip = dict(type='RandomFlip', prob=0.5)
    if step['type'] == 'MultiView':
        return [dict(step, transforms=[[view[0], flip, *view[1:]] for view in step['transforms']])]
    return [step, flip] if step['type'] == 'RandomResizedCrop' else [step]


@lru_cache
def read_digits(folder: Path) -> Labelled:
    """Read the images of a folder, normalised, and their labels."""
    cfg = mkd_plugin.get_config(FINETUNING)
    source = dict(data_root=str(folder.parent), data_prefix=folder.name)
    mean, std = cfg.data_preprocessor.mean[0], cfg.data_preprocessor.std[0]
    return read_dataset(dict(cfg.val_dataloader.dataset, **source), mean, std)


@lru_cache
def read_fashion(split: str, root: Path) -> Labelled:
    """Read a split of Fashion-MNIST, normalised, and its labels."""
    data = Fashion()
    return read_dataset(data.dataset(split, str(root), [dict(type='PackInputs')]), data.mean, data.std)


def read_dataset(cfg: dict[str, Any], mean: float, std: float) -> Labelled:
    """Read all images of a data set, normalised, and their labels."""
    init_default_scope('mmpretrain')
    dataset = DATASETS.build(cfg)
    images_NCHW = torch.stack([dataset[number]['inputs'] for number in range(len(dataset))]).float()
    return (images_NCHW - mean) / std, torch.from_numpy(np.asarray(dataset.get_gt_labels()))
