"""A step at every corner of every method's fields, and at random pairs of corners.

    python tests/campaigns/corners.py [--seed=0] [--count=N] [--start=0]
    python tests/campaigns/corners.py --only=113

The first attempts move one number or switch of one method to an end of its range, each attempt another; what --count
asks for beyond them moves two at random. What the checks refuse in one line is an outcome; of all others a forward and
a backward pass of a tiny network must be finite: loss, metrics, state, gradient. An exception is a failure, too.
"""

import pathlib
import sys

import common
import numpy as np

sys.path.insert(0, str(common.ROOT / "tests"))


def corners_of_attempt(seed: int, index: int) -> tuple[str, dict]:
    """(config, {field: corner}) of one attempt."""
    from helpers import corners

    singles = corners.every_single()
    if index < len(singles):
        name, field, corner = singles[index]
        return name, {field: corner}
    rng = np.random.default_rng([seed, index])
    name = str(rng.choice(sorted(corners.CONFIGS)))
    fields: dict[str, list] = {}
    for field, corner in corners.singles(name):
        fields.setdefault(field, []).append(corner)
    chosen = rng.choice(sorted(fields), 2, replace=False)
    return name, {str(field): fields[field][rng.integers(len(fields[field]))] for field in chosen}


def attempt(seed: int, index: int, folder: pathlib.Path) -> common.Outcome:
    """Takes a step at one corner, or pair."""
    from helpers import corners

    name, moved = corners_of_attempt(seed, index)
    if said := corners.refusal(name, moved):
        return common.Outcome(name, "refused", f"{moved}: several lines: {said}" if "\n" in said else "")
    try:
        problem = corners.problem_of_step(name, moved, compiled=False)
    except Exception as error:
        return common.Outcome(name, "traceback", f"{moved}: {common.described(error)}")
    return common.Outcome(name, "not finite" if problem else "step", f"{moved}: {problem}" if problem else "")


if __name__ == "__main__":
    from helpers.corners import every_single

    common.run(attempt, __doc__, count=len(every_single()))
