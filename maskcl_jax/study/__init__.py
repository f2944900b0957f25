"""Studies: lists of runs and evaluations, what is missing of them, and tables of what they measured.

A file of `studies/` has one function, `get_study(scale) -> Study`. `python -m maskcl_jax.study FILE` runs it with the
ordinary commands `maskcl_jax.main` and `maskcl_jax.evaluate`.
"""

from maskcl_jax.study import cifar
from maskcl_jax.study.definition import Data, Entry, Evaluation, Study

__all__ = ["Data", "Entry", "Evaluation", "Study", "cifar"]
