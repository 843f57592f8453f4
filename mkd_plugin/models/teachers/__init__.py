"""Teachers: frozen networks (or pixels) that say what the student should predict."""

from mkd_plugin.models.teachers.base import Teacher, freeze
from mkd_plugin.models.teachers.bootstrapped import BootstrappedTeacher
from mkd_plugin.models.teachers.clip import CLIPTeacher
from mkd_plugin.models.teachers.generator import GeneratorTeacher
from mkd_plugin.models.teachers.momentum import MomentumTeacher
from mkd_plugin.models.teachers.pixel import PixelTeacher
from mkd_plugin.models.teachers.timm import TimmTeacher
from mkd_plugin.models.teachers.vit import ViTTeacher

__all__ = [
    'BootstrappedTeacher',
    'CLIPTeacher',
    'GeneratorTeacher',
    'MomentumTeacher',
    'PixelTeacher',
    'Teacher',
    'TimmTeacher',
    'ViTTeacher',
    'freeze',
]
