"""The fine-tuning benchmark: what a pre-training is worth for classification, detection and segmentation.

``suites`` lists the tasks, ``jobs`` runs the trainings, ``results`` compares, ``page`` shows, and ``run`` does it all.
tools/benchmark_all.py is its command line.
"""

from mkd_plugin.reporting.benchmark.run import benchmark
from mkd_plugin.reporting.benchmark.suites import Settings

__all__ = ['Settings', 'benchmark']
