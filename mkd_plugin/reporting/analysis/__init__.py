"""The representation analysis: networks measured on a folder of images, as one page and a JSON file.

``measure`` and ``curvature`` compute with ``mkd_plugin.analysis``, ``sections`` draws,
``summary`` compares, ``run`` does it all.
"""

from mkd_plugin.reporting.analysis.run import analyze
from mkd_plugin.reporting.analysis.settings import MEASUREMENTS, Report, Settings

__all__ = ['MEASUREMENTS', 'Report', 'Settings', 'analyze']
