"""Checks that a class is a method: once when it is created, and once when its functions are traced."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from maskcl_jax.errors import UserError
from maskcl_jax.methods.base import LossOutput, Method
from maskcl_jax.views.base import View

FUNCTIONS = (
    "init",
    "preprocess",
    "loss",
    "encoder_variables",
    "features",
    "pictures",
    "target_params",
    "momentum",
)


def _words(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(isinstance(word, str) for word in value)


def _paths(value: Any) -> bool:
    return isinstance(value, tuple) and all(_words(path) for path in value)


def _views(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(isinstance(view, View) for view in value)


def _modules(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(module, nn.Module) for module in value.values())


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


# Attributes of an instance: (what it must be, whether it is that).
ATTRIBUTES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "views": ("a tuple of at least one View", _views),
    "encoder": ("a linen module", lambda value: isinstance(value, nn.Module)),
    "decoders": ("a dict of linen modules", _modules),
    "picture_names": ("a tuple of strings, at least one", _words),
    "feature_kinds": ("a tuple of strings, at least one", _words),
    "frozen": ("a tuple of paths, each a tuple of strings", _paths),
    "ema_first": ("True or False", _flag),
    "supports_image_chunks": ("True or False", _flag),
}


def check_class(name: str, method_class: Any) -> None:
    """Raises UserError listing what a class lacks to be a method, or has in another form than `Method` declares."""
    if not (inspect.isclass(method_class) and issubclass(method_class, Method)):
        raise UserError(f"method.name={name!r} is not a subclass of maskcl_jax.methods.Method")
    faults = [
        f"{function}{_arguments(getattr(Method, function))} is missing"
        for function in sorted(method_class.__abstractmethods__)
    ]
    for function in FUNCTIONS:
        declared, own = getattr(Method, function), getattr(method_class, function)
        if own is not declared and not _accepts(own, declared):
            faults.append(f"{function}{_arguments(own)} should be {function}{_arguments(declared)}")
    if method_class.__init__ is object.__init__:
        faults.append("__init__(config) is missing")
    _report(name, faults)


def check_instance(name: str, method: Method) -> None:
    """Raises UserError listing the attributes that a method does not have in the form that `Method` declares."""
    faults = []
    for attribute, (form, is_that) in ATTRIBUTES.items():
        if not hasattr(method, attribute):
            faults.append(f"{attribute} is missing: it must be {form}")
        elif not is_that(getattr(method, attribute)):
            faults.append(f"{attribute}={getattr(method, attribute)!r} must be {form}")
    _report(name, faults)
    names = [view.name for view in method.views]
    if len(set(names)) < len(names):
        _report(name, [f"views have the names {', '.join(names)}: each must have its own"])


def check_initial(method: Method, initial: Any) -> None:
    """Raises UserError unless `Method.init` returned (params, model_state), with an encoder among the parameters."""
    pair = isinstance(initial, tuple) and len(initial) == 2 and all(isinstance(part, dict) for part in initial)
    if not pair:
        _report(type(method).__name__, ["init must return (params, model_state), two dicts"])
    if "encoder" not in initial[0]:
        _report(type(method).__name__, [f"init must return params['encoder']; it has {', '.join(initial[0])}"])


def check_output(method: Any, out: Any, model_state: dict[str, Any]) -> None:
    """Raises UserError unless `Method.loss` returned a `LossOutput` with a scalar loss and the same kind of state."""
    if not isinstance(out, LossOutput):
        _report(type(method).__name__, [f"loss must return a LossOutput, not {type(out).__name__}"])
    if out.loss.shape != () or out.loss.dtype != "float32":
        _report(type(method).__name__, [f"the loss must be () float32, not {out.loss.shape} {out.loss.dtype}"])
    before, after = (_shapes(state) for state in (model_state, out.model_state))
    differing = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    if differing:
        listed = "; ".join(f"{p} {before.get(p, 'absent')} before, {after.get(p, 'absent')} after" for p in differing)
        _report(type(method).__name__, [f"loss must return a model_state like the one it was given ({listed})"])


def _report(name: str, faults: list[str]) -> None:
    if faults:
        raise UserError(f"method.name={name!r} is not a complete method: {'; '.join(faults)}")


def _arguments(function: Callable) -> str:
    """The names of a function's arguments, without self: `(params, batch, context)`."""
    signature = inspect.signature(function)
    plain = [p.replace(annotation=inspect.Parameter.empty) for n, p in signature.parameters.items() if n != "self"]
    return str(inspect.Signature(plain))


def _accepts(function: Callable, declared: Callable) -> bool:
    """Whether a function can be called as another one is declared: the same names in the same order."""
    parameters = inspect.signature(declared).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = {p.name: p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    try:
        bound = inspect.signature(function).bind(*positional, **keywords)
    except TypeError:
        return False
    # Each argument got its own name; *args and **kwargs take any.
    return all(name == value for name, value in bound.arguments.items() if isinstance(value, str))


def _shapes(tree: Any) -> dict[str, str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.shape} {leaf.dtype}" for path, leaf in leaves}
