"""Evaluates a run: `python -m maskcl_jax.evaluate --workdir=RUN --protocol=P [--data=PRESET] [--config.FIELD=VALUE]`.

  knn                       weighted k nearest neighbors
  logistic, lowshot         logistic regression on frozen features: all labels; 1 % and 10 % (--config.labels=1%,5)
  lowshot:finetune          all weights on 1 % and 10 % of the labels
  linear:sweep|mae|mocov3|mocov2            a linear classifier on frozen features of augmented images
  finetune:mae_b|mae_l|mae_h|cmae_b|cmae_l|resnet|small     all weights
  segment:linear|decoder    semantic segmentation on patch tokens, or the last map of a ResNet (--config.frozen=False)
  features                  embeddings to .npz, nearest neighbors and attention as PNG
  all                       knn, logistic and lowshot
  table                     all results of the run so far

--config.network=online|target|random and --config.feature=cls|mean|mean+cls|lastN|pool|pixels choose the features.
Results go to RUN/evaluate/: one JSON with every field of the protocol, and a table on the screen.
"""

import shlex
import sys

from absl import flags

from maskcl_jax import cli

WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; with --protocol=table several, with commas.")
PROTOCOL = flags.DEFINE_string("protocol", None, "What to evaluate, perhaps with a recipe: linear:mae.")
DATA = flags.DEFINE_string("data", "", "A data preset instead of the run's data; --config.data.FIELD for its fields.")

PREFIX = "--config."


def main(argv: list[str]) -> None:
    """Evaluates, and prints the table of results."""
    # Imported after the flags are parsed: a wrong flag is an error at once.
    from maskcl_jax.evaluate import results
    from maskcl_jax.evaluate.evaluation import evaluate

    workdir, protocol = cli.given(WORKDIR), cli.given(PROTOCOL)
    if protocol == "table":
        contents = [content for folder in workdir.split(",") for content in results.read_all(folder)]
    else:
        contents = evaluate(workdir, protocol, data=DATA.value, overrides=OVERRIDES, command=COMMAND)
    if contents:
        print(results.table(contents))


if __name__ == "__main__":
    # The fields depend on run and protocol, so absl cannot know them as flags.
    COMMAND = shlex.join(["python", "-m", "maskcl_jax.evaluate", *sys.argv[1:]])
    OVERRIDES = tuple(word.removeprefix(PREFIX) for word in sys.argv if word.startswith(PREFIX))
    sys.argv = [word for word in sys.argv if not word.startswith(PREFIX)]
    flags.mark_flags_as_required(["workdir", "protocol"])
    cli.run(main)
