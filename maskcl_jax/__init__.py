"""Self-supervised visual pre-training by masking and contrasting, in JAX/Flax.

    import maskcl_jax as mc

    run = mc.pretrain("ccmim", "photos/", variant="S/16")
    features = run.encoder(["one.jpg", "another.jpg"])

Each name is imported when it is used first: `import maskcl_jax` alone takes no time.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskcl_jax.api import Curve, Encoder, Result, Run, evaluate, export, load, pretrain
    from maskcl_jax.errors import Diverged, UserError
    from maskcl_jax.methods import LossOutput, Method, StepContext
    from maskcl_jax.views.base import Batch, Crop, Entry, Ingredient, View
    from maskcl_jax.views.block_mask import BlockMask
    from maskcl_jax.views.boxes import Boxes
    from maskcl_jax.views.cell_mask import CellMask, CellRule
    from maskcl_jax.views.color import Color
    from maskcl_jax.views.crop import CenterCrop, Overlap, RandomResizedCrop
    from maskcl_jax.views.patch_mask import PatchMask
    from maskcl_jax.views.randaugment import RandAugment

__version__ = "0.1.0"

# Where each name is.
_MODULES = {
    "maskcl_jax.api": ("Curve", "Encoder", "Result", "Run", "evaluate", "export", "load", "pretrain"),
    "maskcl_jax.errors": ("Diverged", "UserError"),
    "maskcl_jax.methods": ("LossOutput", "Method", "StepContext"),
    "maskcl_jax.views.base": ("Batch", "Crop", "Entry", "Ingredient", "View"),
    "maskcl_jax.views.block_mask": ("BlockMask",),
    "maskcl_jax.views.boxes": ("Boxes",),
    "maskcl_jax.views.cell_mask": ("CellMask", "CellRule"),
    "maskcl_jax.views.color": ("Color",),
    "maskcl_jax.views.crop": ("CenterCrop", "Overlap", "RandomResizedCrop"),
    "maskcl_jax.views.patch_mask": ("PatchMask",),
    "maskcl_jax.views.randaugment": ("RandAugment",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Batch",
    "BlockMask",
    "Boxes",
    "CellMask",
    "CellRule",
    "CenterCrop",
    "Color",
    "Crop",
    "Curve",
    "Diverged",
    "Encoder",
    "Entry",
    "Ingredient",
    "LossOutput",
    "Method",
    "Overlap",
    "PatchMask",
    "RandAugment",
    "RandomResizedCrop",
    "Result",
    "Run",
    "StepContext",
    "UserError",
    "View",
    "evaluate",
    "export",
    "load",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    """Imports a name of the interface when it is used first."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """The package: `maskcl_jax.evaluate` and `maskcl_jax.export` are functions, although modules are called so too.

    Importing a module sets it as an attribute of its package; these two are left out. `from maskcl_jax.evaluate import
    knn` and `python -m maskcl_jax.export` do not ask for the attribute.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULE_OF and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
