"""Registries: children of mmengine's root registries, mirrored into mmpretrain's.

As children of the *root*, they make ``type='mkd_plugin.X'`` resolve in the scope of mmpretrain, mmdet and mmseg without
``custom_imports``. Mirroring makes the plain name ``type='X'`` resolve in an mmpretrain config after
``custom_imports=dict(imports=['mkd_plugin'])``.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from mmengine import registry as root
from mmengine.registry import Registry
from torch import Tensor


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


ENGINE = ['mkd_plugin.engine']
MODELS = MirroredRegistry('mkd_plugin model', parent=root.MODELS, locations=['mkd_plugin.models', 'mkd_plugin.dense'])
HOOKS = MirroredRegistry('mkd_plugin hook', parent=root.HOOKS, locations=ENGINE)
RUNNERS = MirroredRegistry('mkd_plugin runner', parent=root.RUNNERS, locations=ENGINE)
STRATEGIES = MirroredRegistry('mkd_plugin strategy', parent=root.STRATEGIES, locations=ENGINE)
OPTIM_WRAPPER_CONSTRUCTORS = MirroredRegistry(
    'mkd_plugin optimizer wrapper constructor', parent=root.OPTIM_WRAPPER_CONSTRUCTORS, locations=ENGINE
)
DATASETS = MirroredRegistry('mkd_plugin dataset', parent=root.DATASETS, locations=['mkd_plugin.datasets'])
DATA_SAMPLERS = MirroredRegistry(
    'mkd_plugin data sampler', parent=root.DATA_SAMPLERS, locations=['mkd_plugin.datasets']
)
TRANSFORMS = MirroredRegistry('mkd_plugin transform', parent=root.TRANSFORMS, locations=['mkd_plugin.datasets'])
FUNCTIONS = MirroredRegistry('mkd_plugin function', parent=root.FUNCTIONS, locations=['mkd_plugin.datasets.crops'])

if find_spec('mmpretrain') is not None:
    from mmpretrain import registry as host

    MODELS.mirror_into(host.MODELS)
    HOOKS.mirror_into(host.HOOKS)
    OPTIM_WRAPPER_CONSTRUCTORS.mirror_into(host.OPTIM_WRAPPER_CONSTRUCTORS)
    DATASETS.mirror_into(host.DATASETS)
    TRANSFORMS.mirror_into(host.TRANSFORMS)


# Annotation → the words and numbers that a config may give for it, and its name in messages. Others are not compared.
KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int, float), 'a whole number'),
    float: ((int, float), 'a number'),
    bool: ((bool, int), 'True or False'),
    str: ((str,), 'a string'),
    Tensor: ((), 'a tensor'),
    type(None): ((), 'None'),
    **dict.fromkeys((dict, Mapping), ((), 'a dict')),
    **dict.fromkeys((list, tuple, Sequence), ((), 'a list')),
}


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
        close = difflib.get_close_matches(str(cfg['type']).rpartition('.')[2], MODELS.module_dict, 3)
        hint = f' Did you mean {close}?' if close else ''
        raise ValueError(
            f"There is no component '{cfg['type']}' in mkd_plugin or mmpretrain.{hint} mkd_plugin has "
            f"{sorted(MODELS.module_dict)}; add the package to a class of another host, for example 'mmseg.HOG'."
        )
    cfg['type'] = component
    options = {key: value for key, value in cfg.items() if key not in ('type', '_scope_')}
    if component.__module__.startswith('mkd_plugin.'):
        check_options(component, options, context)
    check_values(component.__name__, options, parameters_of(component)[0])
    return MODELS.build({'_scope_': 'mkd_plugin', **cfg}, default_args=context)


def find(name: str | type) -> type | None:
    """Find the class of a component in mkd_plugin, else in mmpretrain; None if there is none."""
    if not isinstance(name, str):
        return name
    found = MODELS.get(name)
    return MODELS.get(f'mmpretrain.{name}') if found is None and '.' not in name else found


def check_options(component: type, given: Iterable[str], context: Iterable[str]) -> None:
    """Raise ValueError for an option that ``component`` does not have, or that the model fills in."""
    parameters, _ = parameters_of(component)
    filled_in = sorted(set(given) & set(context))
    if filled_in:
        raise ValueError(f'{component.__name__}: remove {filled_in} from the config; the model fills it in.')
    check_names(component.__name__, given, [name for name in parameters if name not in context])


def check_names(where: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise ValueError for options that are not allowed; say which is near, or why it may be there."""
    options = sorted(allowed)
    unknown = sorted(set(given) - set(options))
    if not unknown:
        return
    nearest = [match for key in unknown for match in difflib.get_close_matches(key, options, 1)]
    hint = f' Did you mean {nearest}?' if nearest else ''
    raise ValueError(
        f'{where} has no option {unknown}.{hint} It has {options}. What a base config has in this dict stays in it: '
        'to drop that, add _delete_=True.'
    )


def parameters_of(component: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Return the options of a class or function with their annotations, and whether it takes no others.

    A constructor with ``**options`` also has its parent's.
    """
    found: dict[str, Any] = {}
    functions = [component]
    if inspect.isclass(component):
        functions = [vars(cls)['__init__'] for cls in component.__mro__ if '__init__' in vars(cls)]
    for function in functions:
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # a builtin
            return found, False
        try:
            hints = get_type_hints(function)
        except (TypeError, NameError, AttributeError):  # a name that is imported for type checkers only
            hints = {}
        named = [one.name for one in parameters if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]
        found = {**{name: hints.get(name, Any) for name in named if name != 'self'}, **found}
        if all(one.kind is not one.VAR_KEYWORD for one in parameters):
            return found, True
    return found, False


def check_values(where: str, values: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Raise ValueError for a value of the wrong kind, for example a word where a number is needed."""
    for key, value in values.items():
        annotation = parameters.get(key, Any)
        if not fits(value, annotation):
            words = list(dict.fromkeys(KINDS[kind][1] for kind in kinds_of(annotation)))
            raise ValueError(f'{where}: {key}={value!r}: it must be {" or ".join(words)}.')


def kinds_of(annotation: Any) -> list[Any]:
    """Split a union into its parts, without their parameters."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    return [get_origin(part) or part for part in parts]


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value from a config may be passed where ``annotation`` stands; True where that cannot be told.

    Only words and numbers are judged: hosts annotate lists, tuples and dicts loosely.
    """
    return not isinstance(value, (str, int, float)) or any(
        kind not in KINDS or isinstance(value, KINDS[kind][0]) for kind in kinds_of(annotation)
    )
