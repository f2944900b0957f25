"""The Python interface: `import maskcl_jax as mc` offers what this subpackage defines.

Reading order: `run` (pretrain, evaluate, export), `encoder` (load), `weights` (what lies at a path), `fields` (from
arguments to a config), `arrays` (data that lie in memory), `images` (from whatever is given to pixels).
"""

from maskcl_jax.api.encoder import Encoder, load
from maskcl_jax.api.run import Curve, Result, Run, evaluate, export, pretrain

__all__ = ["Curve", "Encoder", "Result", "Run", "evaluate", "export", "load", "pretrain"]
