"""The algorithm and its components. Read ``distiller.py`` first."""

from mkd_plugin.models import heads, losses, masking, students, targets, teachers
from mkd_plugin.models.distiller import MaskedDistiller
from mkd_plugin.models.objective import Objective

__all__ = ['MaskedDistiller', 'Objective', 'heads', 'losses', 'masking', 'students', 'targets', 'teachers']
