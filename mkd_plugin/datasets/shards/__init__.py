"""Tar shards in WebDataset's form: ``key.jpg`` and, if there are labels, ``key.cls`` side by side in a tar file.

``members.py`` indexes and reads the members, ``listing.py`` keeps one list of all images, ``storage.py`` reads files on object
storage, ``dataset.py`` is the data set, ``sampler.py`` its order, and ``writing.py`` is behind make_shards.py.
"""

from mkd_plugin.datasets.shards.dataset import ShardDataset
from mkd_plugin.datasets.shards.sampler import ShardSampler

__all__ = ['ShardDataset', 'ShardSampler']
