"""The methods, and how one is created from a config."""

import importlib
import os
import sys
from typing import Any

from maskcl_jax.errors import UserError, check_choice, first_line, place_of
from maskcl_jax.methods import interface
from maskcl_jax.methods.base import Arrays, LossOutput, Method, StepContext
from maskcl_jax.ops import chunked

# Where each class is; imported only when chosen, as those of other packages are.
METHODS = {
    "mae": "maskcl_jax.methods.mae:MAE",
    "ccmim": "maskcl_jax.methods.ccmim:CCMIM",
    "cmae": "maskcl_jax.methods.cmae:CMAE",
    "macrl": "maskcl_jax.methods.macrl:MACRL",
    "mocov3": "maskcl_jax.methods.mocov3:MoCoV3",
    "moco_v2": "maskcl_jax.methods.mocov2:MoCoV2",
    "simclr": "maskcl_jax.methods.simclr:SimCLR",
    "maskco": "maskcl_jax.methods.maskco:MaskCo",
    "saliency_masking": "maskcl_jax.methods.saliency_masking:SaliencyMasking",
}

__all__ = ["METHODS", "Arrays", "LossOutput", "Method", "StepContext", "create", "import_class"]


def create(config: Any, mesh: Any = None) -> Method:
    """Returns the method of a config.

    Args:
        config: `config.method.name` is a key of METHODS, or "package.module:Class" for a subclass of `Method` in a
            module that Python finds, from the current directory too.
        mesh: The devices that it will be trained on; they choose what the config leaves open.

    Raises:
        UserError: The name is unknown, the class is not a complete method, or fields do not go together.
    """
    name = config.method.name
    method_class = import_class(METHODS.get(name, name))
    interface.check_class(name, method_class)
    try:
        method = method_class(config)
        interface.check_instance(name, method)
    except UserError:
        raise
    except Exception as error:
        if name in METHODS:
            raise
        raise UserError(
            f"method.name={name!r}: {method_class.__name__}(config) failed with {type(error).__name__}: "
            f"{first_line(error)}{place_of(error)}; correct the class, or the fields of config.method that it reads"
        ) from error
    if config.image_chunks > 1 and not method.supports_image_chunks:
        raise UserError(
            f"image_chunks={config.image_chunks} does not go with method.name={name!r}: its loss needs the whole batch "
            "at once; use 0 or 1"
        )
    method.image_chunks = max(1, config.image_chunks)
    if mesh is not None and not config.image_chunks and method.supports_image_chunks:
        method.image_chunks = chunked.chunks_for(
            config, mesh, length=1 + method.encoder.grid[0] * method.encoder.grid[1]
        )
    check_choice("eval.feature", config.eval.feature, method.feature_kinds)
    return method


def import_class(name: str) -> Any:
    """Returns the class "package.module:Class". Raises UserError if there is none."""
    module_name, colon, class_name = name.partition(":")
    if not (module_name and colon and class_name):
        raise UserError(f"method.name={name!r} is unknown: use one of {', '.join(METHODS)}, or package.module:Class")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # installed commands, unlike `python -m`, do not look there
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module can raise anything
        remedy = "correct the module"
        if isinstance(error, ModuleNotFoundError):
            remedy = "start from the directory that holds it, or add that to PYTHONPATH"
        raise UserError(
            f"method.name={name!r}: importing {module_name} failed with {type(error).__name__}: {first_line(error)}"
            f"{place_of(error)}; {remedy}"
        ) from error
    try:
        return getattr(module, class_name)
    except AttributeError:
        raise UserError(f"method.name={name!r}: {module.__file__} has no class {class_name}") from None
