"""Tar shards in WebDataset's form: ``key.jpg`` and, if there are labels, ``key.cls`` beside each other in a tar file.

``index.py`` finds the members, ``reading.py`` reads them, ``dataset.py`` is the data set; ``writing.py`` and ``checking.py``
are what tools/dataset_tools/make_shards.py does.
"""

from mkd_plugin.datasets.shards.dataset import ShardDataset

__all__ = ['ShardDataset']
