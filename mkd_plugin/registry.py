"""Registries: children of mmengine's root registries, mirrored into mmpretrain's.

As children of the *root*, they make ``type='mkd_plugin.X'`` resolve in the scope of mmpretrain, mmdet and mmseg without
``custom_imports``. Mirroring makes the plain name ``type='X'`` resolve in an mmpretrain config after
``custom_imports=dict(imports=['mkd_plugin'])``.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry


class MirroredRegistry(Registry):
    """Registry whose members are also registered in a host's registry.

    Mirroring imports nothing: the host gets our ``locations`` and imports them when it first looks up a name.

    Args:
        name: Kind of the members, for messages.
        parent: mmengine's root registry of that kind.
        locations: Modules whose import registers the members.
    """

    def __init__(self, name: str, *, parent: Registry, locations: list[str]) -> None:
        super().__init__(name, parent=parent, scope='mkd_plugin', locations=locations)
        self._mirror: Registry | None = None

    def mirror_into(self, host: Registry) -> None:
        """Let ``host`` find our members by their plain names, importing them lazily."""
        self._mirror = host
        host._locations = [*host._locations, *self._locations]
        host._imported = False  # import locations again if the host has already done so

    def _register_module(self, module: type, module_name: str | list[str] | None = None, force: bool = False) -> None:
        super()._register_module(module, module_name, force)
        if self._mirror is None:
            return
        names = [module.__name__] if module_name is None else module_name
        for name in [names] if isinstance(names, str) else names:
            taken = self._mirror.module_dict.get(name)
            if taken is not None and taken is not module:
                raise ValueError(
                    f"mkd_plugin registers '{name}', but {self._mirror.scope} already has {taken.__module__}."
                    f'{taken.__qualname__} under that name. Rename your class, or do not import both in one run.'
                )
            self._mirror.register_module(name=name, module=module, force=True)


MODELS = MirroredRegistry(
    'mkd_plugin model', parent=MMENGINE_MODELS, locations=['mkd_plugin.models', 'mkd_plugin.dense']
)
HOOKS = MirroredRegistry('mkd_plugin hook', parent=MMENGINE_HOOKS, locations=['mkd_plugin.engine'])
RUNNERS = MirroredRegistry('mkd_plugin runner', parent=MMENGINE_RUNNERS, locations=['mkd_plugin.engine'])
STRATEGIES = MirroredRegistry('mkd_plugin strategy', parent=MMENGINE_STRATEGIES, locations=['mkd_plugin.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = MirroredRegistry(
    'mkd_plugin optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    locations=['mkd_plugin.engine'],
)
DATASETS = MirroredRegistry('mkd_plugin dataset', parent=MMENGINE_DATASETS, locations=['mkd_plugin.datasets'])
TRANSFORMS = MirroredRegistry('mkd_plugin transform', parent=MMENGINE_TRANSFORMS, locations=['mkd_plugin.datasets'])
FUNCTIONS = MirroredRegistry('mkd_plugin function', parent=MMENGINE_FUNCTIONS, locations=['mkd_plugin.datasets.crops'])

if find_spec('mmpretrain') is not None:
    from mmpretrain import registry as mmpretrain_registry

    for ours, name in (
        (MODELS, 'MODELS'),
        (HOOKS, 'HOOKS'),
        (OPTIM_WRAPPER_CONSTRUCTORS, 'OPTIM_WRAPPER_CONSTRUCTORS'),
        (DATASETS, 'DATASETS'),
        (TRANSFORMS, 'TRANSFORMS'),
    ):
        ours.mirror_into(getattr(mmpretrain_registry, name))


def build(cfg: Any, **context: Any) -> Any:
    """Build a component in the plugin's scope, regardless of the run's default scope.

    Args:
        cfg: Config with a ``type`` of mkd_plugin or mmpretrain (``mmpretrain.HOGGenerator`` or plain), or an object, which
            is returned as is.
        context: Keyword arguments that the surrounding model fills in; they must not appear in the config.

    Raises:
        ValueError: The config has no ``type``, an unknown one, or an unknown option.
    """
    if not isinstance(cfg, dict):
        return cfg
    if 'type' not in cfg:
        raise ValueError(f"A component's config needs a 'type', got only {sorted(cfg)}.")
    cfg, component = dict(cfg), find(cfg['type'])
    if component is None:
        raise ValueError(
            f"There is no component '{cfg['type']}' in mkd_plugin or mmpretrain. mkd_plugin has "
            f"{sorted(MODELS.module_dict)}; add the package to a class of another host, for example 'mmseg.HOG'."
        )
    cfg['type'] = component
    if component.__module__.startswith('mkd_plugin.'):
        check_options(component, [key for key in cfg if key not in ('type', '_scope_')], context)
    return MODELS.build({'_scope_': 'mkd_plugin', **cfg}, default_args=context)


def find(name: str | type) -> type | None:
    """Find the class of a component in mkd_plugin, else in mmpretrain; None if there is none."""
    if not isinstance(name, str):
        return name
    found = MODELS.get(name)
    return MODELS.get(f'mmpretrain.{name}') if found is None and '.' not in name else found


def check_options(component: type, given: Iterable[str], context: Iterable[str]) -> None:
    """Raise ValueError for an option that ``component`` does not have, or that the model fills in."""
    allowed: set[str] = set()
    for cls in component.__mro__:  # a constructor with **options also accepts its parent's
        constructor: Callable[..., None] | None = vars(cls).get('__init__')
        if constructor is None:
            continue
        parameters = inspect.signature(constructor).parameters.values()
        allowed |= {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    given = set(given)
    filled_in = sorted(given & set(context))
    if filled_in:
        raise ValueError(f'{component.__name__}: remove {filled_in} from the config; the model fills it in.')
    unknown = sorted(given - allowed)
    if unknown:
        options = sorted(allowed - set(context))
        nearest = [match for key in unknown for match in difflib.get_close_matches(key, options, 1)]
        hint = f' Did you mean {nearest}?' if nearest else ''
        raise ValueError(f'{component.__name__} has no option {unknown}.{hint} It has {options}.')
