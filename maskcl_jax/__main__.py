"""Lists the commands of the package: `python -m maskcl_jax`."""

import sys

COMMANDS = {
    "main": "train a method: --config=FILE[:PRESET] [--workdir=RUN]",
    "evaluate": "evaluate a run: --workdir=RUN --protocol=knn|logistic|linear|finetune|segment|...",
    "report": "show what runs did in one page: RUN [RUN ...] [--out=FILE.html]",
    "export": "export a run's encoder to PyTorch: --workdir=RUN --format=timm|hf|torchvision --out=DIR",
    "import_torch": "make a run of PyTorch weights: FILE --method=METHOD --out=RUN",
    "data.to_array": "write a data set into one file of decoded images: --data=PRESET --out=FILE.npz",
    "study": "run what a study lacks, and tabulate it: studies/FILE.py --data=DIR [--hours=H] [--scale=cpu|gpu]",
    "study.tables": "write the tables of pages from the results of studies: docs/results.md docs/methods/*.md",
    "study.plots": "draw the plots of all studies of results/: docs/plots",
    "study.providers": "judge saliency providers by where objects are: --data=DIR --out=DIR",
    "verify": "compare every method with reference values of the authors' code",
    "benchmark": "measure a config's speed: --config=FILE[:PRESET] --mode=step|input|end_to_end|evaluate",
    "compile_check": "compile a config's step for TPUs without having them: --config=FILE[:PRESET] --topology=v5e:4x4",
}


def main() -> int:
    """Prints the commands; returns the exit status, 2 with arguments, which this command does not take."""
    width = max(map(len, COMMANDS))
    lines = [f"  python -m maskcl_jax.{name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    print("Commands (each explains itself with --help):\n\n" + "\n".join(lines))
    if sys.argv[1:]:
        print(f"error: argument {sys.argv[1]!r} is not understood: run one of the commands above", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
