"""A report: networks measured on a folder of images, as figures on one page and as numbers in a JSON.

``models`` loads them, ``images`` chooses the images, ``measure`` and ``curvature`` compute with ``mkd_plugin.analysis``,
``store`` keeps each result, ``sections`` and ``figures`` draw, ``captions`` says what is seen, ``page`` writes; ``run`` does
it all.
"""

from mkd_plugin.analysis.report.result import Report
from mkd_plugin.analysis.report.run import analyze
from mkd_plugin.analysis.report.settings import MEASUREMENTS, Settings

__all__ = ['MEASUREMENTS', 'Report', 'Settings', 'analyze']
