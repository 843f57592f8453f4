"""Tar shards in WebDataset's form: ``key.jpg`` and, if there are labels, ``key.cls`` side by side in a tar file.

``members.py`` indexes and reads the members, ``dataset.py`` is the data set, ``writing.py`` is behind make_shards.py.
"""

from mkd_plugin.datasets.shards.dataset import ShardDataset

__all__ = ['ShardDataset']
