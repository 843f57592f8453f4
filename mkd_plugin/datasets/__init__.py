"""Embedded data: real images that need no download."""

from mkd_plugin.datasets.digits import draw_labelled, write_digits

__all__ = ['draw_labelled', 'write_digits']
