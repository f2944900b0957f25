"""One state on any mesh, micro-batches, and what is refused. Runs of several processes: tests/test_distributed.py.

`python tests/test_sharding.py DIR` shows in DIR what would take too long here (`prove`).
"""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import MESHES
from helpers.processes import environment
from helpers.tiny import filled, tiny
from helpers.views import batch_of

from maskcl_jax import config as config_lib
from maskcl_jax.errors import UserError
from maskcl_jax.methods import LossOutput, StepContext
from maskcl_jax.methods import create as create_method
from maskcl_jax.training import checkpoint, loop, optimizer, run_folder, sharding, train_state
from maskcl_jax.training.step import accumulate

CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from helpers import meshes
meshes.write_steps(*sys.argv[2:])
"""


def run_child(folder, name: str, *labels: str) -> dict:
    """Writes what `write_steps` does on eight devices; what it found besides."""
    here = str(pathlib.Path(__file__).parent)
    arguments = [sys.executable, "-c", CHILD, here, str(folder), name, *labels]
    subprocess.run(arguments, env=environment(8), check=True)
    return json.loads((folder / "facts.json").read_text())


def differences(folder, label: str) -> dict[str, float]:
    """The largest difference to one device of each array, in units of what float32 may do to it."""
    one, many = (dict(np.load(folder / f"{file}.npz")) for file in ("one", label))
    assert one.keys() == many.keys()
    noise = {key: 5e-6 + 1e-4 * np.sqrt(np.mean(np.float64(value) ** 2)) for key, value in one.items()}
    return {key: float(np.abs(many[key] - value).max() / noise[key]) for key, value in one.items()}


def test_five_steps_are_the_same_on_any_mesh(tmp_path):
    facts = run_child(tmp_path, "mocov3", "one", "both")
    assert {key: share for key, share in differences(tmp_path, "both").items() if not share <= 1} == {}
    assert facts["made_on"] == {"processes": 1, "devices": 8}
    assert 0.5 < facts["both"] / facts["one"] < 0.52  # statistics and the tiny are not split


def prove(folder: str) -> None:
    """What would be too long for a test: every mesh, for a ViT and for a ConvNet with a queue."""
    for name in ("mocov3", "moco_v2"):
        of_method = pathlib.Path(folder) / name
        of_method.mkdir(parents=True)
        facts = run_child(of_method, name, *MESHES)
        for label in list(MESHES)[1:]:
            share, key = max((share, key) for key, share in differences(of_method, label).items())
            size = f"{facts[label]} of {facts['one']} bytes a device"
            print(f"{name} {label}: {size}; at most {share:.2f} of the limit, in {key}")


def test_micro_batches_of_a_mean_over_images_are_the_batch():
    method = create_method(tiny("mae"))
    params, state = filled(method)

    def both(batch):
        context = StepContext(None, state, jax.random.key(0))
        return [accumulate(method.loss, params, batch, context, parts=parts) for parts in (1, 4)]

    (whole, aux), (parts, means) = jax.jit(both)(batch_of(method))
    np.testing.assert_allclose(aux.metrics["loss"], means.metrics["loss"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parts, whole)


def test_a_micro_batch_is_a_batch_to_a_contrast():
    """A loss with all that a contrastive one has, by hand: negatives, statistics, a queue, noise."""

    def loss(params, batch, context):
        own = context.model_state
        x = batch["x"] * params["w"] + jax.random.normal(context.rng, batch["x"].shape)
        value = jnp.mean((x - x.mean()) ** 2) + jnp.sum(own["queue"]) * jnp.sum(params["w"]) + context.target_params
        queue = jnp.roll(own["queue"], 1).at[0].set(x[0])
        state = {"mean": 0.5 * own["mean"] + x.mean(), "count": own["count"] + 1, "queue": queue}
        return LossOutput(value, {"loss": value}, state)

    x, rng = np.random.default_rng(0).standard_normal(12).astype(np.float32), jax.random.key(2)
    params = {"w": jnp.asarray(1.5)}
    state = {"mean": jnp.asarray(0.1), "count": jnp.asarray(0), "queue": jnp.zeros(4)}
    context = StepContext(jnp.asarray(3.0), state, rng)
    grads, out = accumulate(loss, params, {"x": x}, context, parts=3)

    values, gradients = [], []
    for i in range(3):
        part = {"x": x[i::3]}
        of_part = context._replace(model_state=state, rng=jax.random.fold_in(rng, i))
        gradient = jax.grad(lambda p, part=part, of_part=of_part: loss(p, part, of_part).loss)(params)
        value, _, state = loss(params, part, of_part)
        values, gradients = [*values, value], [*gradients, gradient["w"]]
    assert int(out.model_state["count"]) == 3
    expected = [np.mean(values), np.mean(values), np.mean(gradients), state["mean"], state["queue"]]
    found = [out.loss, out.metrics["loss"], grads["w"], out.model_state["mean"], out.model_state["queue"]]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_largest_dimension_that_divides_is_split():
    mesh = jax.sharding.AbstractMesh((2, 4), sharding.AXES)

    def rule(*shape):
        return tuple(sharding.fsdp_sharding(shape, mesh).spec)

    assert rule(384, 1152) == (None, "fsdp")
    assert rule(512, 512) == (None, "fsdp")
    assert rule(3, 3, 2048, 510) == (None, None, "fsdp", None)
    assert rule(1, 197, 768) == (None, None, "fsdp")
    assert rule(512) == ()
    assert rule(1023, 1021) == ()


@pytest.mark.parametrize(
    ("shape", "found"), [((-1, 1), (8, 1)), ((-1, 4), (2, 4)), ((2, -1), (2, 4)), ((4, 2), (4, 2)), ((1, 8), (1, 8))]
)
def test_the_mesh_takes_all_devices(shape, found):
    assert sharding.fill_shape(shape, 8) == found


@pytest.mark.parametrize("shape", [(-1, 3), (3, 2), (2, 2), (16, 1), (-1, 16), (0, 8), (-1, -1), (-2, 8)])
def test_a_mesh_that_does_not_multiply_to_the_devices_is_refused(shape):
    with pytest.raises(UserError, match=rf"mesh\.data={shape[0]}, mesh\.fsdp={shape[1]}"):
        sharding.fill_shape(shape, 8)


def test_a_batch_must_divide_into_micro_batches():
    mesh = jax.sharding.AbstractMesh((2, 4), sharding.AXES)
    sharding.check_batch(64, mesh, parts={"accumulation": 4, "image_chunks": 0})
    with pytest.raises(UserError, match=r"batch_size=40.*8 devices times accumulation=4.*for instance 32"):
        sharding.check_batch(40, mesh, parts={"accumulation": 4})
    with pytest.raises(UserError, match=r"8 devices times accumulation=2 times image_chunks=3.*for instance 48"):
        sharding.check_batch(64, mesh, parts={"accumulation": 2, "image_chunks": 3})
    with pytest.raises(UserError, match=r"bn_group_size=4 does not divide batch_size=8 / accumulation=4"):
        create_method(tiny("moco_v2", accumulation=4))


def test_a_run_of_a_version_without_the_fields_goes_on(tmp_path):
    new = ("mesh.", "accumulation", "remat", "scan", "image_chunks", "optimizer.mu_dtype")
    c = tiny("mae")
    old = {key: value for key, value in config_lib.flat(c).items() if not key.startswith(new)}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert config_lib.flat(config_lib.unflat(run_folder.read_config(tmp_path))) == json.loads(
        json.dumps(config_lib.flat(c))
    )
    c.mesh.fsdp, c.remat = 4, "blocks"  # where it is computed may change
    run_folder.claim(tmp_path, c)
    c.accumulation = 2
    with pytest.raises(UserError, match="accumulation: 1 there, 2 here"):
        run_folder.claim(tmp_path, c)


def test_another_order_of_the_images_is_told(monkeypatch):
    state = train_state.TrainState(jnp.asarray(7), {}, None, {}, ())
    before = {"processes": 2, "devices": 8}
    line = "resumed from step 7 on 1 processes with 1 devices, before on 2 with 8"
    assert loop.opening_line(state, before) == line
    assert loop.opening_line(state, checkpoint.machine_counts()) == "resumed from step 7"


def test_the_first_moment_in_bfloat16_is_half_as_large():
    c = tiny("mae", **{"optimizer.mu_dtype": "bfloat16"})
    params, _ = filled(create_method(c))
    state = optimizer.create(c, lambda step: 0.1).init(params)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(state)}
    assert dtypes == {"float32", "bfloat16", "int32"}


if __name__ == "__main__":
    prove(sys.argv[1])
