"""What a run's encoder makes of held-out images: their map, their neighbors, its attention, how well k-NN does."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskcl_jax.data import pipeline
from maskcl_jax.data.sources import Source
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import checks, features, results, settings
from maskcl_jax.evaluate.session import Session, open_session
from maskcl_jax.interchange.product import product_of
from maskcl_jax.interchange.writing import check_fits
from maskcl_jax.ops import losses
from maskcl_jax.report import maps as maps_lib
from maskcl_jax.report.embed import (
    Images,
    accuracies,
    comparison_problem,
    images_of,
    neighbors,
    spread_over_classes,
    untrained,
)
from maskcl_jax.training import optimizer
from maskcl_jax.training.run import Run, restore_run
from maskcl_jax.training.step import Plan
from maskcl_jax.training.visualize import to_rgb

HELD_OUT, POOL = 480, 2048  # images of the map, and those that neighbors are looked for in
QUERIES = 8
SECONDS = 2.0  # of a quick look, for each of the two sets of images, besides compiling
EXPORTS = ("timm", "hf", "torchvision")


class Initial(NamedTuple):
    """What the same images are to the encoder's initial values.

    Attributes:
        rank: Effective rank of the centered features.
        nearest: (queries, k) indices in the pool.
        similarity: (queries, k) cosines.
    """

    rank: float
    nearest: np.ndarray
    similarity: np.ndarray


class Look(NamedTuple):
    """What the page shows of an encoder.

    Attributes:
        data: Description of the data.
        total: Steps that the run was to have.
        shortened_warmup: A warning, "" for none.
        parameters: Of the encoder.
        held_out: Images of the map.
        pool: Images that neighbors are looked for in; `held_out` itself where there is but one split.
        names: One for each held-out image.
        class_names: () without labels.
        split: What `held_out` is: "test" or "train".
        maps: Name -> (n, 2), each axis in 0..1.
        explained: Fractions of the variance on the two axes of PCA.
        queries: Indices of the held-out images whose neighbors are shown.
        nearest: (queries, k) indices in the pool.
        similarity: (queries, k) cosines.
        attention: {title: (queries, H, W, 3) uint8}; {} for an encoder without a cls token.
        accuracy: Whose features -> {accuracy, low, high, n_test, n_train, k}; {} where it cannot be measured,
        not_compared: and why; "" where it is.
        rank: Effective rank of the centered features.
        initial: The same of the untrained encoder: its rank and neighbors; None for a quick look.
        problem: Why features cannot tell images apart; "" where they can.
        exports: Formats that hold this encoder.
        embedded: How many images of which split are shown.
        left_out: What is not shown, and why.
    """

    data: str
    total: int
    shortened_warmup: str
    parameters: int
    held_out: Images
    pool: Images
    names: list[str]
    class_names: tuple[str, ...]
    split: str
    maps: dict[str, np.ndarray]
    explained: tuple[float, float]
    queries: np.ndarray
    nearest: np.ndarray
    similarity: np.ndarray
    attention: dict[str, np.ndarray]
    accuracy: dict[str, dict[str, float]]
    not_compared: str
    rank: float
    initial: Initial | None
    problem: str
    exports: list[str]
    embedded: str
    left_out: list[str]


def look(workdir: str, *, quick: bool = False) -> Look:
    """Restores a run's newest checkpoint and computes everything that the page shows of it.

    Args:
        workdir: The run's folder.
        quick: As much as goes in a few seconds.

    Raises:
        UserError: There is no checkpoint, or the data are not there.
    """
    if jax.process_count() > 1:
        raise UserError("several processes run: this takes one")
    run = restore_run(workdir)
    session = open_session(run, settings.create("features", run.config)[0])
    source, encoder = session.source, session.encoder
    split = "test" if source.num_examples("test") else "train"
    compute = jax.jit(lambda variables, images: encoder.features(variables, images, session.feature))
    seconds = SECONDS if quick else 0.0

    def embed(split: str, limit: int) -> Images:
        return images_of(session, lambda images: compute(encoder.variables, images), split, limit, seconds)

    held_out = embed(split, HELD_OUT)
    pool = embed("train", POOL) if split == "test" else held_out
    queries = spread_over_classes(held_out.labels, QUERIES)
    nearest, similarity = neighbors(held_out, pool, queries)
    maps, explained = {}, (0.0, 0.0)
    problem = checks.features_problem(held_out.features, split)
    if not problem and len(held_out.features) > 2:
        maps["PCA"], explained = maps_lib.pca(held_out.features)
    left_out = limits(quick=quick)
    first = None if quick else untrained(session, held_out, pool, compute)
    if maps and not quick and not maps_lib.umap_problem():
        maps["UMAP"] = maps_lib.umap(held_out.features)
    not_compared = problem or comparison_problem(source, held_out, pool)
    accuracy = {} if not_compared else accuracies(session, held_out, pool, initial=first, left_out=left_out)
    per_epoch = pipeline.steps_per_epoch(source, run.config.batch_size)
    total = Plan.from_config(run.config, per_epoch).total
    return Look(
        data=source.description,
        total=total,
        shortened_warmup=optimizer.shortened_warmup(run.config, total_steps=total, steps_per_epoch=per_epoch) or "",
        parameters=sum(leaf.size for leaf in jax.tree.leaves(encoder.variables["params"])),
        held_out=held_out,
        pool=pool,
        names=names_of(session, held_out, split),
        class_names=tuple(source.class_names),
        split=split,
        maps=maps,
        explained=explained,
        queries=queries,
        nearest=nearest,
        similarity=similarity,
        attention=attention(session, held_out.pixels[queries]) if encoder.is_vit else {},
        accuracy=accuracy,
        not_compared=not_compared,
        rank=rank_of(held_out),
        initial=Initial(rank_of(first[0]), *neighbors(*first, queries)) if first else None,
        problem=problem,
        exports=[format for format in EXPORTS if holds(run, format)],
        embedded=shown_of(source, split, held_out, pool),
        left_out=left_out,
    )


def rank_of(images: Images) -> float:
    """Effective rank of the features."""
    return float(losses.effective_rank(jnp.asarray(images.features)))


def shown_of(source: Source, split: str, held_out: Images, pool: Images) -> str:
    """How many images of each split are embedded, in words."""

    def part(name: str, images: Images) -> str:
        count, words = source.num_examples(name), "held-out" if name == "test" else "training"
        return f"{'all' if len(images.where) == count else f'{len(images.where)} of the'} {count} {words} images"

    if split == "train":
        return f"{part('train', pool)} (no images are held out)"
    return f"{part('test', held_out)} and {part('train', pool)}"


def limits(*, quick: bool) -> list[str]:
    """What a look leaves out, as far as is known before it."""
    if quick:
        return ["the untrained encoder: its effective rank, neighbors and k-NN on the same images", "UMAP"]
    problem = maps_lib.umap_problem()
    return [f"UMAP, as {problem} (pip install 'maskcl_jax[umap]'): the map is PCA"] if problem else []


def attention(session: Session, images: np.ndarray) -> dict[str, np.ndarray]:
    """Images as lit by what the cls token attends to: in the last block, and summed over all (ccMIM's ranking)."""
    weights = np.asarray(jax.jit(session.encoder.cls_attention)(session.encoder.variables, jnp.asarray(images)))
    patch, shown = session.encoder.module.patch_size, to_rgb(images / np.float32(255))
    rows = {"last block": weights[-1], "all blocks": weights.sum(axis=0)}
    lit = {title: shown * (0.1 + 0.9 * np.sqrt(features.heat(row, patch))) for title, row in rows.items()}
    return {"image": shown} | {title: np.round(row).astype(np.uint8) for title, row in lit.items()}


def names_of(session: Session, images: Images, split: str) -> list[str]:
    """The file's name, or the number, of each image."""
    data = session.source.evaluated(split)
    return [str(data.name(int(i))).rsplit("/", 1)[-1] for i in images.where]


def holds(run: Run, format: str) -> bool:
    """Whether a run can be exported to a format."""
    try:
        check_fits(product_of(run, format=format, network="online", full=False))
    except UserError:
        return False
    return True


def interval(entry: dict[str, float]) -> str:
    """An accuracy with its interval, as tables show it."""
    return results.outcome(dict(entry))["result"]
