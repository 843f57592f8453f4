"""Our networks in other libraries: what an export is for, and what its outcome is checked against."""

from mkd_plugin.interop.libraries.kinds import KINDS, TARGETS, Kind, choose_kind, features_of_options

__all__ = ['KINDS', 'TARGETS', 'Kind', 'choose_kind', 'features_of_options']
