"""Students: thin users of the one ViT."""

from mkd_plugin.models.students.classifier import ClassifierViT
from mkd_plugin.models.students.masked import MaskTokenViT
from mkd_plugin.models.students.plain import PlainViT
from mkd_plugin.models.students.visible import VisibleViT

__all__ = ['ClassifierViT', 'MaskTokenViT', 'PlainViT', 'VisibleViT']
