"""Mistakes of the loop, of resuming, and of checkpoints."""

from mutants.mutant import Mutant

# Every journey that claims to resume: each alone must see that the checkpoint is ignored.
JOURNEYS = {
    "failure": "tests/test_train.py::test_a_run_leaves_what_it_promises_and_from_a_checkpoint_ends_the_same[mae]",
    "kill": "tests/test_train.py::test_a_killed_run_held_its_folder_and_ends_as_one_that_was_not",
    "signal": "tests/test_preemption.py::test_after_sigterm_and_ctrl_c_the_same_command_takes_the_remaining_steps",
    "data-on-device": "tests/test_on_device.py::test_a_run_that_goes_on_makes_the_views_of_the_first",
    "outside-method": "tests/test_simmim.py::test_a_run_that_broke_off_is_resumed_and_ends_as_one_that_did_not",
    "older-version": "tests/test_old_checkpoints.py::test_the_run_is_finished_from_step_3",
    "two-processes": "tests/test_distributed.py::test_two_processes_are_one_run_and_stop_together",
}

RESUME = [
    Mutant(
        f"the-checkpoint-is-ignored-{journey}",
        "maskcl_jax/training/loop.py",
        "state = checkpoints.restore_newest(program.shapes, live.say, move=True)",
        "state = None",
        test,
    )
    for journey, test in JOURNEYS.items()
]

TRAINING = [
    Mutant(
        "a-resumed-run-sees-the-first-batches-again",
        "maskcl_jax/training/loop.py",
        "batches = open_batches(source, program, start)",
        "batches = open_batches(source, program, 0)",
        "tests/test_train.py::test_a_run_leaves_what_it_promises_and_from_a_checkpoint_ends_the_same[mae]",
    ),
    Mutant(
        "a-resumed-run-counts-from-0",
        "maskcl_jax/training/loop.py",
        "start = int(state.step)",
        "start = 0",
        "tests/test_train.py::test_a_run_leaves_what_it_promises_and_from_a_checkpoint_ends_the_same[mae]",
    ),
    Mutant(
        "a-signal-stops-without-saving",
        "maskcl_jax/training/loop.py",
        "saving = plan.due(step, plan.save_every) or stopping",
        "saving = plan.due(step, plan.save_every)",
        "tests/test_preemption.py::test_after_sigterm_and_ctrl_c_the_same_command_takes_the_remaining_steps",
    ),
    Mutant(
        "a-start-that-fails-leaves-the-folder-locked",
        "maskcl_jax/training/loop.py",
        "stack.enter_context(contextlib.closing(run_folder.claim(workdir, config)))",
        "lock = run_folder.claim(workdir, config)  # noqa: F841",
        "tests/test_train.py::test_a_run_that_fails_while_it_starts_leaves_nothing_open[open_batches]",
    ),
    Mutant(
        "a-start-that-fails-leaves-its-batches-open",
        "maskcl_jax/training/loop.py",
        "stack.enter_context(contextlib.closing(batches))",
        "pass",
        "tests/test_train.py::test_a_run_that_fails_while_it_starts_leaves_nothing_open[Monitor]",
    ),
    Mutant(
        "a-signal-is-not-remembered",
        "maskcl_jax/training/distributed.py",
        "signal.Signals(number), True",
        "signal.Signals(number), False",
        "tests/test_preemption.py::test_the_first_signal_is_remembered_and_the_second_ends_the_process",
    ),
    Mutant(
        "the-EMA-ignores-its-momentum",
        "maskcl_jax/training/train_state.py",
        "lambda t, o: momentum * t + (1.0 - momentum) * o",
        "lambda t, o: 0.99 * t + 0.01 * o",
        "tests/test_two_views.py::test_when_and_how_far_the_target_moves[cmae]",
    ),
    Mutant(
        "the-target-does-not-move-after-the-step",
        "maskcl_jax/training/step.py",
        "target_params = moved_target(params)\n",
        "target_params = state.target_params\n",
        "tests/test_two_views.py::test_when_and_how_far_the_target_moves[cmae]",
    ),
    Mutant(
        "the-target-does-not-move-before-the-step",
        "maskcl_jax/training/step.py",
        "target_params = moved_target(state.params) if method.ema_first else state.target_params",
        "target_params = state.target_params",
        "tests/test_two_views.py::test_when_and_how_far_the_target_moves[mocov3]",
    ),
    Mutant(
        "gradients-of-micro-batches-are-added",
        "maskcl_jax/training/step.py",
        "jax.tree.map(lambda g: g / parts, total)",
        "total",
        "tests/test_sharding.py::test_micro_batches_of_a_mean_over_images_are_the_batch",
    ),
    Mutant(
        "the-lock-is-not-taken",
        "maskcl_jax/training/run_folder.py",
        "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "tests/test_lock.py::test_the_folder_is_free_after_close_and_after_the_last_reference",
    ),
    Mutant(
        "other-data-are-accepted",
        "maskcl_jax/training/checkpoint_metadata.py",
        'if differing <= {"encoder"}:',
        "if True:",
        "tests/test_checkpoint.py::test_other_data_are_refused_with_both_figures_and_a_moved_folder_is_not",
    ),
    Mutant(
        "the-digest-leaves-out-the-names",
        "maskcl_jax/data/sources/base.py",
        'digest.update(below.encode("utf-8", "surrogateescape") + b"\\0")',
        "pass",
        "tests/test_checkpoint.py::test_other_data_are_refused_with_both_figures_and_a_moved_folder_is_not",
    ),
    Mutant(
        "another-config-is-accepted",
        "maskcl_jax/training/run_folder.py",
        "if differing := differences(config, read_config(workdir)):",
        "if differing := []:",
        "tests/test_checkpoint.py::test_the_folder_of_another_config_is_refused_with_the_difference",
    ),
    Mutant(
        "checksums-are-not-compared",
        "maskcl_jax/training/checkpoint.py",
        "if before is not None and before != checksums(state):",
        "if False:",
        "tests/test_checkpoint.py::test_a_damaged_newest_checkpoint_is_named[arrays of a process-one bit]",
    ),
    Mutant(
        "there-is-no-warm-up",
        "maskcl_jax/training/optimizer.py",
        "return jnp.where(step < warmup, rising, falling)",
        "return falling",
        "tests/test_optimizer.py::test_warmup_cosine_meets_its_corners",
    ),
    Mutant(
        "biases-decay-instead-of-matrices",
        "maskcl_jax/training/optimizer.py",
        "jax.tree.map(lambda p: p.ndim > 1, params)",
        "jax.tree.map(lambda p: p.ndim <= 1, params)",
        "tests/test_optimizer.py::test_adamw_decays_matrices_and_tokens_only",
    ),
    Mutant(
        "LARS-applies-the-learning-rate-first",
        "maskcl_jax/training/optimizer.py",
        "optax.trace(decay=momentum),\n        optax.scale_by_learning_rate(schedule),",
        "optax.scale_by_learning_rate(schedule),\n        optax.trace(decay=momentum),",
        "tests/test_optimizer.py::test_lars_of_mae_applies_the_learning_rate_last",
    ),
    Mutant(
        "frozen-parameters-move",
        "maskcl_jax/training/optimizer.py",
        "    if frozen:\n",
        "    if False:\n",
        "tests/test_optimizer.py::test_frozen_parameters_do_not_decay_either",
    ),
    Mutant(
        "a-multiply-add-is-one-FLOP",
        "maskcl_jax/performance/flops.py",
        "total += 2.0 * math.prod(shape_of(eqn.outvars[0]))",
        "total += math.prod(shape_of(eqn.outvars[0]))",
        "tests/test_benchmark.py::test_the_flops_of_a_mae_step_are_those_of_the_closed_form[plain]",
    ),
    Mutant(
        "every-step-draws-the-same-noise",
        "maskcl_jax/training/step.py",
        "jax.random.fold_in(jax.random.key(seed), state.step)",
        "jax.random.key(seed)",
        "tests/test_train.py::test_noise_is_that_of_the_step",
    ),
    Mutant(
        "rows-after-the-checkpoint-stay",
        "maskcl_jax/training/logging.py",
        'if json.loads(line)["step"] <= step:',
        "if json.loads(line):",
        "tests/test_logging.py::test_a_resumed_run_drops_the_rows_after_its_checkpoint",
    ),
]
