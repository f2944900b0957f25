"""What a mutant is."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One mistake.

    Attributes:
        name: What goes wrong.
        file: Where, from the root of the repository.
        old: Text that occurs once in the file.
        new: What stands there instead.
        test: The test that must fail, as pytest takes it, below `tests/`.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
