"""What is wrong with a run, as far as its record and its encoder show; each finding is one sentence or two."""

from collections.abc import Mapping

from maskcl_jax.report.look import Look
from maskcl_jax.report.record import Points, Record

RANK = 1.1  # effective rank of the features below which hardly one direction is left
FEW = 10  # rows of the log: the loss of fewer is not judged


def findings(record: Record, look: Look | None) -> list[str]:
    """Returns what a person should know before using the run; [] where nothing was found.

    Args:
        record: Of the run.
        look: At its encoder; None where there is none.
    """
    found = [
        f"{metric} was not finite in {count} {'row' if count == 1 else 'rows'} of the log."
        for metric, count in sorted(record.not_finite.items())
    ]
    found += [loss_problem(record.curves.get("loss", [])), untrained_problem(record.curves.get("knn_accuracy", []))]
    if skipped := record.summary.get("skipped images"):
        found.append(f"Images were skipped: {skipped}.")
    if look is not None:
        found += look_problems(record, look)
    return [text for text in found if text]


def checks(record: Record, look: Look | None) -> dict[str, str]:
    """Returns what `findings` checks -> why it could not be checked on this run; "" where it was."""
    log = "" if record.curves or record.not_finite else "the run has no log"
    rows, knn = len(record.curves.get("loss", [])), record.curves.get("knn_accuracy", [])
    encoder = "" if look else "its encoder was not opened"
    compared = set(look.accuracy) if look else set()
    missing = encoder or (look.not_compared if look else "") or "left out of this page"
    during = len(knn) > 1 and knn[0][0] == 0
    return {
        "values that are not finite": log,
        "the loss": log or ("" if rows >= FEW else f"the log has {rows} of the {FEW} rows that this needs"),
        "images that could not be read": "" if record.summary else "the run has no closing table",
        "whether the run is finished": encoder,
        "collapse": encoder,
        "the warm-up": encoder,
        "k-NN against the untrained encoder": "" if during or "untrained" in compared else missing,
        "k-NN against raw pixels": "" if "raw pixels" in compared else missing,
    }


def look_problems(record: Record, look: Look) -> list[str]:
    """The findings that need the encoder or the data."""
    found = []
    if record.step < look.total:
        found.append(f"The run is not finished: step {record.step} of {look.total}.")
    if look.problem:
        found.append(f"Collapse: {look.problem}.")
    elif look.rank < RANK:
        found.append(
            f"Collapse: the features vary in one direction only (effective rank {look.rank:.1f} of "
            f"{look.held_out.features.shape[1]})."
        )
    if look.shortened_warmup:
        found.append(f"{look.shortened_warmup.removeprefix('warning: ')}.")
    return found + [better(look.accuracy, other) for other in ("untrained", "raw pixels") if other in look.accuracy]


def better(accuracy: Mapping[str, Mapping[str, float]], other: str) -> str:
    """Says that k-NN of something else is better than that of the encoder; "" where it is not."""
    mine, theirs = accuracy["this encoder"], accuracy[other]
    if theirs["accuracy"] <= mine["accuracy"]:
        return ""
    who = "the untrained encoder" if other == "untrained" else other
    within = ", with intervals that overlap" if theirs["low"] <= mine["high"] else ""
    return (
        f"k-NN of {who} is better: {100 * theirs['accuracy']:.1f} % against {100 * mine['accuracy']:.1f} %, on "
        f"{theirs['n_test']:.0f} held-out images{within}."
    )


def loss_problem(points: Points) -> str:
    """Compares the means of the first and the last tenth of the loss; a run of a few rows is not judged."""
    if len(points) < FEW:
        return ""
    tenth = len(points) // 10
    first, last = (sum(value for _, value in part) / tenth for part in (points[:tenth], points[-tenth:]))
    return "" if last < first else f"The loss did not fall: {first:.4g} at the start, {last:.4g} at the end."


def untrained_problem(points: Points) -> str:
    """Compares k-NN during training with that of step 0."""
    if len(points) < 2 or points[0][0] != 0 or points[-1][1] >= points[0][1]:
        return ""
    return (
        f"k-NN is below that of the untrained encoder: {points[-1][1]:.1f} % at step {points[-1][0]}, "
        f"{points[0][1]:.1f} % at step 0."
    )
