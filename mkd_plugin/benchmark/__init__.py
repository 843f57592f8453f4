"""What a pre-training is worth for classification, detection and segmentation: fine-tuned in turn, in one report.

``suites`` says which tasks there are, ``jobs`` runs a training and knows what is done, ``scores`` compares, ``report``
collects, ``figures``, ``pictures`` and ``page`` show; ``run`` does it all. tools/benchmark_all.py is its command line.
"""

from mkd_plugin.benchmark.run import benchmark
from mkd_plugin.benchmark.settings import Settings

__all__ = ['Settings', 'benchmark']
