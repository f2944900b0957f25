"""Metrics one step late, and speed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskcl_jax.errors import Diverged
from maskcl_jax.training.throughput import Meter, Throughput


def test_metrics_come_one_step_late():
    meter = Meter()
    assert meter.push(1, {"loss": jnp.asarray(0.5)}) is None
    assert meter.push(2, {"loss": jnp.asarray(0.25)}) == (1, {"loss": 0.5})
    assert meter.flush() == (2, {"loss": 0.25})
    assert meter.flush() is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_named(value):
    meter = Meter()
    meter.push(7, {"loss_rec": jnp.asarray(value), "attention_entropy": jnp.asarray(np.nan)})
    with pytest.raises(Diverged, match=r"loss_rec is (nan|inf) at step 7"):
        meter.flush()


def test_throughput_leaves_out_the_first_step_and_pauses():
    now = [0.0]
    throughput = Throughput(10, clock=lambda: now[0], cpu_clock=lambda: 3 * now[0])
    now[0] = 30.0  # compilation
    throughput.step()
    assert throughput.images_per_second() == 0.0
    assert throughput.eta(6) == 0.0
    for _ in range(4):
        now[0] += 2.0
        throughput.step()
        with throughput.paused():
            now[0] += 100.0
    assert throughput.images_per_second() == pytest.approx(5.0)
    assert throughput.overall() == pytest.approx(5.0)
    assert throughput.scalars()["cpu_seconds_per_image"] == pytest.approx(3 * 2.0 / 10)
    assert throughput.eta(6) == pytest.approx(12.0)


def test_the_current_speed_is_that_of_the_last_steps():
    now = [0.0]
    throughput = Throughput(10, clock=lambda: now[0], window=2)
    for seconds in (1.0, 1.0, 5.0, 5.0):
        now[0] += seconds
        throughput.step()
    assert throughput.images_per_second() == pytest.approx(2.0)
    assert throughput.overall() == pytest.approx(30 / 11)


def test_data_wait_and_mfu():
    now = [0.0]
    throughput = Throughput(10, flops_per_image=3.0, peak=60.0, clock=lambda: now[0])
    for _ in range(4):
        with throughput.waiting():
            now[0] += 0.5
        now[0] += 1.5
        throughput.step()
    assert throughput.data_wait() == pytest.approx(0.25)
    assert throughput.data_wait(2) == pytest.approx(0.25)
    row = throughput.scalars()
    assert row["images_per_second"] == pytest.approx(5.0)
    assert row["images_per_second_per_device"] == pytest.approx(5.0 / jax.device_count())
    assert row["data_wait"] == pytest.approx(0.25)
    assert row["mfu"] == pytest.approx(5.0 * 3.0 / 60.0)
    assert Throughput(10).scalars() == {}
    assert Throughput(10).mfu(5.0) is None
