"""Any folder of images, tar shards; and embedded data, real images that need no download."""

from mkd_plugin.datasets.digit_scenes import write_digit_scenes
from mkd_plugin.datasets.digits import draw_labelled, write_digits
from mkd_plugin.datasets.folder import ImageFolder
from mkd_plugin.datasets.loading import LoadAnyImage
from mkd_plugin.datasets.shards import ShardDataset
from mkd_plugin.datasets.transforms import CropForDevice, FlipOnDevice

__all__ = [
    'CropForDevice',
    'FlipOnDevice',
    'ImageFolder',
    'LoadAnyImage',
    'ShardDataset',
    'draw_labelled',
    'write_digit_scenes',
    'write_digits',
]
