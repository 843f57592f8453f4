"""Datasets (folders of images, tar shards, embedded digits) and transforms."""

from mkd_plugin.datasets.crops import CropForDevice, FlipOnDevice, PackCrops
from mkd_plugin.datasets.digits import draw_labelled, write_digits
from mkd_plugin.datasets.folder import ImageFolder
from mkd_plugin.datasets.loading import LoadAnyImage
from mkd_plugin.datasets.sampler import ElasticSampler
from mkd_plugin.datasets.shards import ShardDataset, ShardSampler

__all__ = [
    'CropForDevice',
    'ElasticSampler',
    'FlipOnDevice',
    'ImageFolder',
    'LoadAnyImage',
    'PackCrops',
    'ShardDataset',
    'ShardSampler',
    'draw_labelled',
    'write_digits',
]
