"""Teachers, T in the equation: frozen networks, copies of the student, or fixed maps such as pixels."""

from mkd_plugin.models.teachers.cached import CachedTeacher
from mkd_plugin.models.teachers.generator import GeneratorTeacher, PixelTeacher, SpectrumTeacher
from mkd_plugin.models.teachers.student_average import AnchoredTeacher, LayerAverageTeacher
from mkd_plugin.models.teachers.student_copy import BootstrappedTeacher, MomentumTeacher
from mkd_plugin.models.teachers.timm import TimmTeacher
from mkd_plugin.models.teachers.vit import CLIPTeacher, ViTTeacher

__all__ = [
    'AnchoredTeacher',
    'BootstrappedTeacher',
    'CLIPTeacher',
    'CachedTeacher',
    'GeneratorTeacher',
    'LayerAverageTeacher',
    'MomentumTeacher',
    'PixelTeacher',
    'SpectrumTeacher',
    'TimmTeacher',
    'ViTTeacher',
]
