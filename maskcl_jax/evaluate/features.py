"""Embeddings of a split to .npz; nearest neighbors, and what the cls token attends to, as PNG."""

import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from maskcl_jax import config as config_lib
from maskcl_jax.data.sources import SPLITS
from maskcl_jax.errors import UserError, check_choice
from maskcl_jax.evaluate import checks, knn, settings, subsets
from maskcl_jax.evaluate.session import Session
from maskcl_jax.training import run_folder, sharding, visualize
from maskcl_jax.training.checkpoint_metadata import difference_of
from maskcl_jax.training.run import Run

PART = 64  # batches a file, until all are computed


def run_features(session: Session) -> None:
    """Writes FILE.npz {features, labels, index, names, class_names, origin}, FILE-neighbors.png and -attention.png.

    Raises:
        UserError: For a split without images, and a file that is there from something else.
    """
    s = session.settings
    check_choice("split", s.split, SPLITS)
    if not session.source.num_examples(s.split):
        raise UserError(f"split={s.split!r} of {session.source.description} has no image: choose another")
    path, neighbors, attention = files_of(session.run, s)
    origin = origin_of(session)
    if not exists(path):
        check_origin(path.with_suffix(".parts") / "origin.json", origin)
        collect(session, path, origin)
    if jax.process_index() == 0:
        check_file(path, origin)
        saved = np.load(path)
        session.warn(checks.features_problem(saved["features"], s.split))
        print(f"{path}: {saved['features'].shape[0]} embeddings of width {saved['features'].shape[1]}", flush=True)
        draw_neighbors(session, saved, neighbors)
        if session.encoder.is_vit:
            draw_attention(session, saved["index"], attention)


def files_of(run: Run, chosen: ConfigDict) -> tuple[pathlib.Path, ...]:
    """The files of an evaluation by `run_features`: embeddings, neighbors, attention (of a ViT); () of others."""
    if chosen.protocol != "features":
        return ()
    name = settings.name_of(chosen, run.step)
    path = pathlib.Path(chosen.out or pathlib.Path(run.workdir, "evaluate", f"{name}.npz")).with_suffix(".npz")
    return path, path.with_name(f"{path.stem}-neighbors.png"), path.with_name(f"{path.stem}-attention.png")


def origin_of(session: Session) -> dict[str, Any]:
    """Everything that the embeddings depend on; the batch size is not part of it."""
    fields = config_lib.flat(session.settings)
    origin = {
        name: value for name, value in fields.items() if name not in ("batch_size", "out", "pictures", "neighbors")
    }
    workdir = str(pathlib.Path(session.run.workdir).absolute())
    origin |= {"workdir": workdir, "step": session.run.step, "feature": session.feature}
    return json.loads(json.dumps(origin | {"facts": session.facts(session.settings.split)}))


def check_file(path: pathlib.Path, origin: dict[str, Any]) -> None:
    """Raises UserError where a file is not the embeddings of this very run and these settings."""
    try:
        stored = json.loads(str(np.load(path)["origin"]))
    except (OSError, ValueError, KeyError):
        raise UserError(f"{path} exists and holds no embeddings: give another --config.out") from None
    compare(path, stored, origin)


def check_origin(record: pathlib.Path, origin: dict[str, Any]) -> None:
    """The same for work that was interrupted."""
    if record.exists():
        compare(record.parent, json.loads(record.read_text()), origin)


def compare(path: pathlib.Path, stored: dict[str, Any], origin: dict[str, Any]) -> None:
    """Raises UserError naming the first field that differs, or the data; says where they are not known."""
    remedy = "give another --config.out, or remove it"
    for field, value in origin.items():
        if field != "facts" and stored.get(field) != value:
            raise UserError(
                f"{path} exists from another run ({field}: {stored.get(field)} there, {value} here): {remedy}"
            )
    if "facts" not in stored:
        print(f"warning: {path} does not say of which data it is: if they have changed, {remedy}", flush=True)
    elif difference := difference_of(stored["facts"], origin["facts"]):
        raise UserError(f"{path} exists from other data or weights ({difference}): {remedy}")


def collect(session: Session, path: pathlib.Path, origin: dict[str, Any]) -> None:
    """Computes what is missing, PART batches a file, and joins the files. All processes call it."""
    parts = path.with_suffix(".parts")
    writes = jax.process_index() == 0
    if writes:
        parts.mkdir(parents=True, exist_ok=True)
        run_folder.write_text(parts / "origin.json", json.dumps(origin))
    size = session.settings.batch_size
    files: list[pathlib.Path] = []
    rows: list[tuple] = []
    compute = session.feature_fn()
    with session.batches(session.settings.split, size) as batches:
        for number, batch in enumerate(batches):
            file = parts / f"{number // PART:05d}-{size}.npz"
            if exists(file):  # computed before an interruption
                continue
            if file not in files:
                rows = save_part(files, rows, writes)
                files.append(file)
            rows += knn.feature_batches(compute, [batch], session.put, keep="valid")
    save_part(files, rows, writes)
    if writes:
        join(session, parts, size, path, origin)
        shutil.rmtree(parts)


def exists(path: pathlib.Path) -> bool:
    """Whether the first process, which writes, sees a file: all processes must decide alike."""
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(path.exists())))


def save_part(files: list[pathlib.Path], rows: list[tuple], writes: bool) -> list[tuple]:
    """Writes the rows of the newest part, whole or not at all; returns no rows."""
    if rows and writes:
        beside = files[-1].with_suffix(".tmp.npz")
        np.savez(beside, *(np.concatenate(column) for column in zip(*rows, strict=True)))
        beside.rename(files[-1])
    return []


def join(session: Session, parts: pathlib.Path, size: int, path: pathlib.Path, origin: dict[str, Any]) -> None:
    """All parts in one file, with the names of the images."""
    columns = [list(np.load(file).values()) for file in sorted(parts.glob(f"*-{size}.npz"))]
    features, labels, index = (np.concatenate(column) for column in zip(*columns, strict=True))
    data = session.source.evaluated(session.settings.split)
    beside = path.with_suffix(".tmp.npz")
    np.savez(
        beside,
        features=features,
        labels=labels,
        index=index,
        names=np.array([data.name(i) for i in index]),
        class_names=np.array(session.source.class_names, str),
        origin=json.dumps(origin),
    )
    beside.rename(path)


def images_at(session: Session, index: np.ndarray) -> np.ndarray:
    """(n, H, W, C) uint8 of some images of the split, in the order of `index`."""
    ascending = np.unique(index)
    part = subsets.Part(session.source, {"test": (session.settings.split, ascending)})
    size = -(-len(ascending) // session.mesh.size) * session.mesh.size
    with session.batches("test", size, part) as batches:
        images = np.concatenate([batch["image"][batch["valid"]] for batch in batches])
    return images[np.searchsorted(ascending, index)]


def draw_neighbors(session: Session, saved: Any, path: pathlib.Path) -> None:
    """Draws a few images, each with the images of most similar embeddings (cosine)."""
    s, unit = session.settings, knn.normalized(saved["features"])
    queries = spread(len(unit), s.pictures)
    count = min(s.neighbors, len(unit) - 1)
    if not len(queries) or count < 1:
        return
    similarity = unit[queries] @ unit.T
    similarity[np.arange(len(queries)), queries] = -np.inf
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    shown = np.concatenate([queries[:, None], nearest], axis=1)
    images = images_at(session, saved["index"][shown.ravel()]).reshape(*shown.shape, *s.data.image_size, -1)
    titles = ["image", *(f"{i + 1}." for i in range(count))]
    columns = {title: images[:, i] / 255.0 for i, title in enumerate(titles)}
    visualize.save_png(path, visualize.grid(columns, max_rows=len(queries)))
    print(f"{path}: nearest neighbors", flush=True)


def draw_attention(session: Session, index: np.ndarray, path: pathlib.Path) -> None:
    """Draws images beside what the cls token attends to: in the last block, and summed over all (ccMIM's ranking)."""
    chosen = spread(len(index), session.settings.pictures)
    if not len(chosen):
        return
    images = images_at(session, index[chosen])
    attend = jax.jit(session.encoder.cls_attention, out_shardings=sharding.replicated(session.mesh))
    attention = np.asarray(attend(session.encoder.variables, jnp.asarray(images)))
    patch = session.encoder.module.patch_size
    columns = {"image": images / 255.0, "last block": heat(attention[-1], patch), "all": heat(attention.sum(0), patch)}
    visualize.save_png(path, visualize.grid(columns, max_rows=len(chosen)))
    print(f"{path}: attention of the cls token", flush=True)


def heat(weights: np.ndarray, patch: int) -> np.ndarray:
    """Weights of patches (B, h, w) -> of pixels (B, H, W, 1), each image's from 0 to 1."""
    low, high = weights.min(axis=(1, 2), keepdims=True), weights.max(axis=(1, 2), keepdims=True)
    scaled = (weights - low) / np.maximum(high - low, 1e-12)
    return scaled.repeat(patch, axis=1).repeat(patch, axis=2)[..., None]


def spread(count: int, limit: int) -> np.ndarray:
    """At most `limit` evenly spaced indices below `count`."""
    return np.arange(min(limit, count)) * count // max(min(limit, count), 1)
