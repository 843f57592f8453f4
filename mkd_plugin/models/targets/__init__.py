"""Target normalisations, N in the unified view."""

from mkd_plugin.models.targets.normalize import L2Normalize, TokenStandardize

__all__ = ['L2Normalize', 'TokenStandardize']
