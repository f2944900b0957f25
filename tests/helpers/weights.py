"""Files of weights that exports leave, and what imports make of them."""

import numpy as np

from helpers.untrained import arrays, made
from maskcl_jax.interchange import files, pickles
from maskcl_jax.interchange.exporting import export_run

STOCK = {"model.stem": "imagenet", "model.width": 64}  # a ResNet that other libraries have


def mae_encoder(tmp_path, **fields) -> dict[str, np.ndarray]:
    """The tensors of a tiny MAE's encoder, as the authors name them."""
    export_run(made("mae", **fields), "mae", str(tmp_path / "mae"), check=False)
    return files.read_state(str(tmp_path / "mae"))[0]


def saved(tmp_path, state, name="weights.safetensors") -> str:
    """A bare file, which no record explains."""
    file = tmp_path / name
    file.write_bytes(pickles.torch_file(state, "model") if name.endswith(".pth") else files.write_safetensors(state))
    return str(file)


def assert_encoder(ours, theirs):
    """The encoder of a run is that of another."""
    ours, theirs = (arrays(run.state.params["encoder"]) for run in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_array_equal(ours[path], value, err_msg=path)
