"""Writes a product: the folder with its weights, texts, README and record."""

import json
import pathlib
from typing import Any

from maskcl_jax import __version__
from maskcl_jax.config import flat
from maskcl_jax.errors import UserError
from maskcl_jax.interchange import files
from maskcl_jax.interchange.formats import FORMATS
from maskcl_jax.interchange.preprocessing import preprocessing_words
from maskcl_jax.interchange.product import KINDS, Product


def check_fits(p: Product) -> None:
    """Raises UserError where the format cannot hold this network."""
    if reason := FORMATS[p.format].lacks(p):
        raise UserError(f"--format={p.format} cannot hold this run: {reason}")


def write_files(p: Product, folder: pathlib.Path) -> None:
    """Writes everything but the README into a folder."""
    form = FORMATS[p.format]
    (folder / form.file).write_bytes(form.encode(p.state))
    for name, content in form.texts(p).items():
        (folder / name).write_text(content)
    (folder / files.RECORD).write_text(json.dumps(record(p), indent=1))


def record(p: Product) -> dict[str, Any]:
    """What `import_torch` reads back: how the export was made, and the config of the run."""
    return {
        "maskcl_jax": __version__,
        "format": p.format,
        "kind": p.kind,
        "network": p.network,
        "final_norm": p.depths.final_norm,
        "run": str(p.run.workdir),
        "step": p.run.step,
        "config": flat(p.config),
    }


def architecture(p: Product) -> str:
    """The network in words."""
    e = p.encoder
    if p.is_vit:
        words = f"ViT, width {e.width}, {e.depth} blocks, {e.heads} heads, patches of {e.patch_size}x{e.patch_size}"
    else:
        words = f"{p.encoder.size.name}, {e.width} channels in the {e.stem} stem"
    return f"{words}, images of {p.size[0]}x{p.size[1]}x{p.channels}"


def feature_words(p: Product) -> str:
    """The feature that the run was evaluated with, in words."""
    if not p.is_vit:
        return "mean over positions of the last stage"
    norm = "after the final norm" if p.depths.final_norm else "of the last block; this network has no final norm"
    return f"{'cls token' if p.config.eval.feature == 'cls' else 'mean of the patch tokens'}, {norm}"


def readme(p: Product, folder: str, verdict: str) -> str:
    """The README.

    Args:
        p: The export.
        folder: Where it will lie.
        verdict: What the check says.

    Returns:
        Markdown, the lines that load it first.
    """
    form = FORMATS[p.format]
    feature, preprocess = form.feature(p), form.preprocess(p, folder)
    shown = form.load(p, folder)
    shown += f"\n# of normalized images (B, C, H, W): {feature}" if feature else ""
    shown += "\n# normalized images of a PIL image:" + f"\n{preprocess}".replace("\n", "\n# ") if preprocess else ""
    rows = {
        "run": f"{p.run.workdir}, step {p.run.step}",
        "method": p.config.method.name,
        "network": {"online": "online", "target": "EMA target"}[p.network] if p.kind != "full" else "all",
        "architecture": architecture(p),
        "feature": feature_words(p),
        "preprocessing": preprocessing_words(p),
        "left out": ", ".join(p.left_out) or "nothing" if p.kind == "full" else "all but the encoder",
        "checked": verdict,
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    back = f"python -m maskcl_jax.import_torch {folder} --method={p.format} --out=RUN"
    title = f"# {p.config.method.name}: {KINDS[p.kind]} for {p.format}"
    return (
        f"{title}\n\n```python\n{shown}\n```\n\n{form.notes(p, folder)}\n| | |\n|---|---|\n{table}\n\n"
        f"Written by maskcl_jax {__version__}; `{back}` makes a run of it again.\n"
    )
