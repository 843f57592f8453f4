"""The algorithm and its components. Read ``distiller.py`` first, then ``objective.py`` and ``protocols.py``."""

from mkd_plugin.models import (
    backbones,
    balance,
    heads,
    losses,
    masking,
    schedules,
    standardize,
    students,
    targets,
    teachers,
)
from mkd_plugin.models.distiller import MaskedDistiller
from mkd_plugin.models.objective import Objective
from mkd_plugin.models.preprocessor import CropPreprocessor

__all__ = [
    'CropPreprocessor',
    'MaskedDistiller',
    'Objective',
    'backbones',
    'balance',
    'heads',
    'losses',
    'masking',
    'schedules',
    'standardize',
    'students',
    'targets',
    'teachers',
]
