"""Shows what runs did in one page: `python -m maskcl_jax.report RUN [RUN ...] [--out=FILE.html]`.

The page holds all it shows and opens without a network: configs, curves, the figures over training, a map of held-out
images, their nearest neighbors, attention, evaluations, warnings, and what to type next. Several runs stand side by
side. UMAP is added where umap-learn is installed.
"""

import pathlib

from absl import flags

from maskcl_jax import cli
from maskcl_jax.report.page import write

OUT = flags.DEFINE_string("out", "", "The page; default RUN/report.html, with several runs report.html here.")
QUICK = flags.DEFINE_bool("quick", False, "Only what goes in a few seconds, as at the end of a run.")


def main(argv: list[str]) -> None:
    """Writes the page and says where it is."""
    runs = argv[1:]
    out = OUT.value or (pathlib.Path(runs[0]) / "report.html" if len(runs) == 1 else "report.html")
    print(write(runs, out, quick=QUICK.value))


if __name__ == "__main__":
    cli.run(main, positional="RUN, the folder of a run,", several=True)
