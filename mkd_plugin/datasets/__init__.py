"""Any folder of images; and embedded data, real images that need no download."""

from mkd_plugin.datasets.digits import draw_labelled, write_digits
from mkd_plugin.datasets.folder import ImageFolder
from mkd_plugin.datasets.loading import LoadAnyImage

__all__ = ['ImageFolder', 'LoadAnyImage', 'draw_labelled', 'write_digits']
