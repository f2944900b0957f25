"""The mutants: each is one mistake that a test must see."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One mistake.

    Attributes:
        name: What goes wrong.
        file: Where, from the root of the repository.
        old: Text that occurs once in the file.
        new: What stands there instead.
        test: The test that must fail, as pytest takes it, below `tests/`.
    """

    name: str
    file: str
    old: str
    new: str
    test: str


# Every journey that claims to resume: each alone must see that the checkpoint is ignored.
JOURNEYS = {
    "failure": "tests/test_train.py::test_a_run_leaves_what_it_promises_and_one_that_broke_off_the_same[mae]",
    "kill": "tests/test_train.py::test_sigkill_at_a_random_step_changes_nothing",
    "signal": "tests/test_preemption.py::test_after_sigterm_the_same_command_takes_the_remaining_steps",
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
        "tests/test_train.py::test_a_run_leaves_what_it_promises_and_one_that_broke_off_the_same[mae]",
    ),
    Mutant(
        "a-resumed-run-counts-from-0",
        "maskcl_jax/training/loop.py",
        "start = int(state.step)",
        "start = 0",
        "tests/test_train.py::test_a_run_leaves_what_it_promises_and_one_that_broke_off_the_same[mae]",
    ),
    Mutant(
        "a-signal-stops-without-saving",
        "maskcl_jax/training/loop.py",
        "saving = plan.due(step, plan.save_every) or stopping",
        "saving = plan.due(step, plan.save_every)",
        "tests/test_preemption.py::test_ctrl_c_saves_too",
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
        'digest.update(os.path.relpath(name, folder).encode("utf-8", "surrogateescape") + b"\\0")',
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
        "tests/test_benchmark.py::test_the_flops_of_a_mae_step_are_those_of_the_closed_form[1-plain]",
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

METHODS = [
    Mutant(
        "MAE-counts-all-patches",
        "maskcl_jax/methods/mae.py",
        "only_masked=True)\n        return self.error(prediction, self.target_patches(targets, masked))",
        ")\n        both = jnp.concatenate([visible, masked], axis=1)\n"
        "        return self.error(prediction, self.target_patches(targets, both))",
        "tests/test_methods.py::test_mae_counts_the_masked_patches_alone",
    ),
    Mutant(
        "norm_pix-is-ignored",
        "maskcl_jax/methods/mae.py",
        "return losses.normalize_patches(patches) if self.config.method.norm_pix else patches",
        "return patches",
        "tests/test_methods.py::test_mae_counts_the_masked_patches_alone",
    ),
    Mutant(
        "the-gradient-reaches-the-masked-branch",
        "maskcl_jax/methods/ccmim.py",
        "losses.info_nce(proj_v, stop(proj_m), c.temperature)",
        "losses.info_nce(proj_v, proj_m, c.temperature)",
        "tests/test_methods.py::test_the_gradient_stops_at_the_masked_branch[stop-False]",
    ),
    Mutant(
        "the-weight-of-the-alignment-is-ignored",
        "maskcl_jax/methods/ccmim.py",
        'out["loss"] + c.align_weight * loss_align',
        'out["loss"] + loss_align',
        "tests/test_methods.py::test_the_weight_scales_the_alignment",
    ),
    Mutant(
        "what-is-important-stays-visible",
        "maskcl_jax/ops/masking.py",
        "return attention - noise\n",
        "return noise - attention\n",
        "tests/test_masking.py::test_importance_masks_in_proportion_to_attention",
    ),
    Mutant(
        "the-mask-is-inverted",
        "maskcl_jax/ops/masking.py",
        "mask = jnp.ones((visible.shape[0], num_patches), jnp.float32)\n"
        "    return mask.at[jnp.arange(visible.shape[0])[:, None], visible].set(0.0)",
        "mask = jnp.zeros((visible.shape[0], num_patches), jnp.float32)\n"
        "    return mask.at[jnp.arange(visible.shape[0])[:, None], visible].set(1.0)",
        "tests/test_masking.py::test_restore_puts_every_token_back",
    ),
    Mutant(
        "SimMIM-counts-all-patches",
        "examples/simmim.py",
        "loss = jnp.sum(mask * error) / jnp.sum(mask)",
        "loss = jnp.mean(error)",
        "tests/test_simmim.py::test_only_masked_pixels_count_and_the_encoder_does_not_see_them",
    ),
    Mutant(
        "the-temperature-is-ignored",
        "maskcl_jax/ops/losses.py",
        "/ temperature\n    positives = jnp.diagonal(logits)",
        "\n    positives = jnp.diagonal(logits)",
        "tests/test_losses.py::test_info_nce_is_the_cross_entropy_of_cosines",
    ),
    Mutant(
        "a-row-is-its-own-negative",
        "maskcl_jax/ops/losses.py",
        "    logits = jnp.where(jnp.eye(count, dtype=bool), -jnp.inf, logits)\n",
        "",
        "tests/test_losses.py::test_nt_xent_ranks_the_other_view_among_all_others",
    ),
    Mutant(
        "hard-negatives-have-no-weight",
        "maskcl_jax/ops/losses.py",
        'parts.append(hard_weight * jnp.einsum("bd,bnd->bn"',
        'parts.append(jnp.einsum("bd,bnd->bn"',
        "tests/test_losses.py::test_hard_negatives_are_weighted_inside_the_exponential",
    ),
    Mutant(
        "keys-do-not-enter-the-queue",
        "maskcl_jax/ops/losses.py",
        'return {"keys": rows, "pointer"',
        'return {"keys": queue["keys"], "pointer"',
        "tests/test_two_views.py::test_the_bank_takes_turns",
    ),
    Mutant(
        "the-newest-keys-leave-the-queue",
        "maskcl_jax/ops/losses.py",
        '(queue["pointer"] + keys.shape[0]) % rows.shape[0]',
        'queue["pointer"]',
        "tests/test_two_views.py::test_the_bank_takes_turns",
    ),
    Mutant(
        "MoCo-v3-has-one-direction",
        "maskcl_jax/methods/mocov3.py",
        'out["loss"] = out["loss_q1k2"] + out["loss_q2k1"]',
        'out["loss"] = out["loss_q1k2"]',
        "tests/test_two_views.py::test_moco_v3_adds_both_directions",
    ),
    Mutant(
        "MoCo-v2-has-one-direction",
        "maskcl_jax/methods/mocov2.py",
        "(out[name] + other[name]) / 2",
        "out[name]",
        "tests/test_mocov2.py::test_both_directions_are_averaged",
    ),
    Mutant(
        "shuffled-keys-stay-shuffled",
        "maskcl_jax/methods/mocov2.py",
        "maps[jnp.argsort(order)]",
        "maps",
        "tests/test_mocov2.py::test_shuffled_keys_come_back_in_order",
    ),
    Mutant(
        "the-gradient-reaches-CMAEs-target",
        "maskcl_jax/methods/cmae.py",
        """        target = jax.lax.stop_gradient(context.target_params)
        out["target_pooled"] = self.target_features(target, key)
        target_projection, target_stats = apply_in_training(
            self.projector, "projector", target, target_stats, out["target_pooled"]
        )
        target_projection = jax.lax.stop_gradient(target_projection)
""",
        """        target = context.target_params
        out["target_pooled"] = self.target_features(target, key)
        target_projection, target_stats = apply_in_training(
            self.projector, "projector", target, target_stats, out["target_pooled"]
        )
""",
        "tests/test_two_views.py::test_no_gradient_reaches_the_target[cmae]",
    ),
    Mutant(
        "the-momentum-does-not-rise",
        "maskcl_jax/methods/contrast.py",
        "return 1.0 - (1.0 - start) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))",
        "return start + 0.0 * progress",
        "tests/test_two_views.py::test_the_momentum_rises_to_one",
    ),
    Mutant(
        "MaskCo-hides-all-but-its-regions",
        "maskcl_jax/methods/maskco.py",
        "return jnp.where(mask, fill, images), mask",
        "return jnp.where(mask, images, fill), mask",
        "tests/test_maskco.py::test_the_query_does_not_see_what_is_masked_and_the_key_does",
    ),
    Mutant(
        "the-cap-of-salient-cells-is-ignored",
        "maskcl_jax/ops/cells.py",
        "    if cap is not None:\n",
        "    if False:\n",
        "tests/test_saliency.py::test_no_negative_counts_and_the_cap",
    ),
    Mutant(
        "masked-and-clean-cells-are-exchanged",
        "maskcl_jax/methods/saliency_masking.py",
        "jnp.where(hidden, filling, clean)",
        "jnp.where(hidden, clean, filling)",
        "tests/test_saliency_masking.py::test_the_mean_and_the_blur_fill_cells",
    ),
    Mutant(
        "a-region-is-its-own-negative",
        "maskcl_jax/methods/maskco.py",
        "left_out |= jnp.eye(c.regions, boxes.shape[1], dtype=bool)",
        "left_out |= False",
        "tests/test_maskco.py::test_a_region_is_never_its_own_negative",
    ),
    Mutant(
        "overlapping-regions-are-negatives",
        "maskcl_jax/methods/maskco.py",
        "> c.negative_iou",
        "> 1.0",
        "tests/test_maskco.py::test_same_image_negatives_by_hand",
    ),
]

MODELS = [
    Mutant(
        "running-statistics-do-not-move",
        "maskcl_jax/models/batch_norm.py",
        "mean.value += self.momentum * (group_mean",
        "mean.value += 0.0 * (group_mean",
        "tests/test_models.py::test_batch_norm_of_feature_maps_is_torchs",
    ),
    Mutant(
        "BatchNorms-groups-are-ignored",
        "maskcl_jax/models/batch_norm.py",
        "self.group_size or x.shape[0]",
        "x.shape[0]",
        "tests/test_models.py::test_batch_norm_normalizes_within_groups",
    ),
    Mutant(
        "position-tables-take-the-nearest-row",
        "maskcl_jax/models/vit.py",
        "np.where(distance <= 1, near, far)",
        "np.where(distance <= 0.5, 1.0, 0.0)",
        "tests/test_evaluate.py::test_another_image_size_resizes_the_positions_as_torch_does[size0-grid0]",
    ),
    Mutant(
        "blocks-compute-in-float32",
        "maskcl_jax/models/vit.py",
        'options = {"dtype": self.dtype, "attention"',
        'options = {"dtype": jnp.float32, "attention"',
        "tests/test_attention.py::test_networks_multiply_in_16_bits[mae-0]",
    ),
]

DATA = [
    Mutant(
        "every-epoch-has-the-same-order",
        "maskcl_jax/data/order.py",
        'generator(seed, "order", epoch=epoch)',
        'generator(seed, "order", epoch=0)',
        "tests/test_data_batches.py::test_an_epoch_never_repeats_an_image",
    ),
    Mutant(
        "every-process-loads-the-same-images",
        "maskcl_jax/data/order.py",
        "start = position * self.batch_size + self.process_index * self.local",
        "start = position * self.batch_size",
        "tests/test_data_batches.py::test_slices_of_two_processes_make_the_batch_of_one",
    ),
    Mutant(
        "unreadable-images-are-not-replaced",
        "maskcl_jax/data/pipeline.py",
        "skipped += self.replace(batch, slot)",
        "pass",
        "tests/test_data_batches.py::test_a_broken_image_is_replaced_counted_and_named",
    ),
    Mutant(
        "the-shift-of-CMAEs-key-is-ignored",
        "maskcl_jax/data/loading.py",
        "resized[down : down + height, across : across + width]",
        "resized[:height, :width]",
        "tests/test_data_batches.py::test_shifted_views_are_windows_of_one_crop[synthetic]",
    ),
    Mutant(
        "views-are-never-mirrored",
        "maskcl_jax/views/crop.py",
        "flip = (numbers[:, -1:] < 0.5) & self.flip",
        "flip = (numbers[:, -1:] < 0.5) & False",
        "tests/test_data_batches.py::test_crops_follow_the_closed_form",
    ),
    Mutant(
        "block-masks-have-one-ratio",
        "maskcl_jax/views/block_mask.py",
        "target = (low + (high - low) * numbers[:, 0])",
        "target = (high + 0 * numbers[:, 0])",
        "tests/test_data_batches.py::test_block_masks_have_ratios_of_their_own_and_are_made_of_rectangles",
    ),
    Mutant(
        "the-keys-boxes-are-in-the-querys-pixels",
        "maskcl_jax/views/boxes.py",
        "in_view(boxes, crop, view.crop.size, xp)",
        "in_view(boxes, other_crop, other.crop.size, xp)",
        "tests/test_boxes.py::test_a_box_shows_the_same_place_in_both_views[arrays]",
    ),
    Mutant(
        "an-old-index-is-used",
        "maskcl_jax/data/sources/records.py",
        'if index["stamp"] == stamp:',
        "if True:",
        "tests/test_tfds.py::test_the_index_is_made_once_and_again_where_the_data_changed",
    ),
    Mutant(
        "EXIF-orientation-is-ignored",
        "maskcl_jax/data/decode.py",
        "if exif and (orientation := _orientation(image)) in depth.ORIENTATIONS:",
        "if False and (orientation := _orientation(image)) in depth.ORIENTATIONS:",
        "tests/test_decode.py::test_exif_orientation_is_followed_where_wanted",
    ),
    Mutant(
        "padding-counts-in-evaluations",
        "maskcl_jax/data/pipeline.py",
        "valid = np.arange(chunk.size) < count",
        "valid = np.ones(chunk.size, bool)",
        "tests/test_data_batches.py::test_evaluation_covers_every_image_once",
    ),
    Mutant(
        "the-members-of-tar-files-are-no-fact",
        "maskcl_jax/data/sources/tar.py",
        "is_path=False, marks=marks)",
        "is_path=False)",
        "tests/test_data_facts.py::test_tar_files_of_other_images_are_other_data",
    ),
    Mutant(
        "the-parts-of-scenes-are-no-fact",
        "maskcl_jax/data/sources/scenes.py",
        'return counts | {f"parts_{name}": value for name, value in facts.items()}',
        "return counts",
        "tests/test_data_facts.py::test_arrays_and_the_parts_of_scenes_are_told_apart_by_pixels_and_labels[scenes-parts_]",
    ),
    Mutant(
        "the-test-split-is-no-fact",
        "maskcl_jax/data/sources/base.py",
        'zip(SPLITS, ("", "test_"), strict=True):',
        '[("train", "")]:',
        "tests/test_data_facts.py::test_the_test_split_of_a_folder_is_a_fact",
    ),
    Mutant(
        "folders-of-splits-are-classes",
        "maskcl_jax/data/sources/layout.py",
        'if {*roles} - {"unlabeled"} and (named or is_mixed(roles)):',
        "if False:",
        "tests/test_folder.py::test_every_way_of_naming_splits_is_understood",
    ),
    Mutant(
        "a-single-folder-is-not-looked-into",
        "maskcl_jax/data/sources/layout.py",
        "        if len(names) > 1:\n            break\n",
        "        break\n",
        "tests/test_folder.py::test_every_way_of_naming_splits_is_understood[folders8-data/train-data/val]",
    ),
    Mutant(
        "tar-files-of-splits-are-mixed",
        "maskcl_jax/data/sources/layout.py",
        "if is_mixed(found) or {*TESTED} <= {*found}:",
        "if False:",
        "tests/test_folder.py::test_tar_files_of_several_splits_are_refused",
    ),
    Mutant(
        "stray-files-never-matter",
        "maskcl_jax/data/sources/folder.py",
        "len(names) > 1 and len(loose) <= max(1, len(images) // 100)",
        "len(names) > 1",
        "tests/test_folder.py::test_a_hundredth_of_the_images_may_lie_beside_the_classes",
    ),
    Mutant(
        "what-was-understood-of-a-folder-is-not-said",
        "maskcl_jax/data/sources/folder.py",
        "self.describe(what, self._notes)",
        "self.describe(what)",
        "tests/test_folder.py::test_what_was_understood_is_said_in_the_description",
    ),
    Mutant(
        "files-that-are-not-used-vanish",
        "maskcl_jax/data/sources/folder.py",
        'unused.update(others + ["hidden"] * (len(files) - len(shown)))',
        "pass",
        "tests/test_folder.py::test_whatever_is_not_used_is_counted_and_named",
    ),
    Mutant(
        "folders-without-images-vanish",
        "maskcl_jax/data/sources/folder.py",
        '(without, "folders have no image"),',
        '([], "folders have no image"),',
        "tests/test_folder.py::test_whatever_is_not_used_is_counted_and_named",
    ),
    Mutant(
        "members-of-tar-files-vanish",
        "maskcl_jax/data/sources/tar.py",
        "others[key].append(os.path.splitext(base)[1].lower())",
        "pass",
        "tests/test_folder.py::test_what_lies_in_tar_files_and_beside_them_and_is_not_used_is_said",
    ),
    Mutant(
        "arrays-of-a-npz-vanish",
        "maskcl_jax/data/sources/npz.py",
        "[f\"not used: {', '.join(unused)}\"] if unused else []",
        "[]",
        "tests/test_on_device.py::test_a_file_of_arrays_is_a_source",
    ),
    Mutant(
        "an-index-has-its-own-threads",
        "maskcl_jax/data/sources/records.py",
        "ThreadPoolExecutor(threads or THREADS)",
        "ThreadPoolExecutor(THREADS)",
        "tests/test_workers.py::test_no_pool_has_more_threads_than_wanted",
    ),
    Mutant(
        "images-from-Python-have-their-own-threads",
        "maskcl_jax/api/images.py",
        "ThreadPoolExecutor(data_config.threads or os.cpu_count())",
        "ThreadPoolExecutor(os.cpu_count())",
        "tests/test_workers.py::test_no_pool_has_more_threads_than_wanted",
    ),
    Mutant(
        "a-transparent-color-is-compared-by-its-high-bytes",
        "maskcl_jax/data/depth.py",
        "(256 * high + low != color)",
        "(high != np.array(color) // 256)",
        "tests/test_depth.py::test_of_16_bits_one_color_is_transparent_and_none_that_is_close",
    ),
    Mutant(
        "12-bits-of-colors-are-not-warned-of",
        "maskcl_jax/data/depth.py",
        "    if _is_shortened(image):\n        rest",
        "    if False:\n        rest",
        "tests/test_depth.py::test_12_bits_in_16_are_warned_of[PNG]",
    ),
    Mutant(
        "planes-of-16-bits-are-left-to-Pillow",
        "maskcl_jax/data/depth.py",
        "return _first_page(encoded) if wrong else image",
        "return image",
        "tests/test_depth.py::test_of_16_bits_the_high_byte_is_taken",
    ),
    Mutant(
        "floating-point-images-are-not-scaled",
        "maskcl_jax/data/depth.py",
        "np.round(pixels.astype(np.float32) * 255)",
        "np.round(pixels.astype(np.float32))",
        "tests/test_depth.py::test_floating_point_numbers_of_0_to_1_become_0_to_255",
    ),
    Mutant(
        "signed-values-are-read",
        "maskcl_jax/data/depth.py",
        'if SIGNED in tags.get(SAMPLE_FORMAT, ()) or (tags and image.mode == "I"):',
        "if False:",
        "tests/test_depth.py::test_values_of_which_nobody_knows_what_is_white_are_refused",
    ),
    Mutant(
        "only-missing-libraries-are-noticed",
        "maskcl_jax/errors.py",
        "except Exception as error:  # a broken installation raises anything",
        "except ImportError as error:",
        "tests/test_optional_libraries.py::test_a_library_is_tried_with_what_is_needed_of_it",
    ),
]

EVALUATION = [
    Mutant(
        "k-NN-ignores-its-temperature",
        "maskcl_jax/evaluate/knn.py",
        "jnp.exp((similarity - similarity[:, :1]) / temperature)",
        "jnp.exp(similarity - similarity[:, :1])",
        "tests/test_knn.py::test_a_near_neighbour_outweighs_two_far_ones_only_at_a_low_temperature",
    ),
    Mutant(
        "more-neighbors-than-images-are-reported",
        "maskcl_jax/evaluate/knn.py",
        '"k": min(k, len(train)),',
        '"k": k,',
        "tests/test_knn.py::test_more_neighbors_than_images_means_all",
    ),
    Mutant(
        "an-evaluation-starts-anew",
        "maskcl_jax/evaluate/fit.py",
        "state: Any = checkpoints.restore_newest(abstract, say, move=True, anew=True)",
        "state: Any = None",
        "tests/test_evaluate.py::test_an_interrupted_linear_evaluation_goes_on_where_it_stopped",
    ),
    Mutant(
        "an-evaluation-sees-the-first-batches-again",
        "maskcl_jax/evaluate/fit.py",
        "contextlib.closing(batches(start))",
        "contextlib.closing(batches(0))",
        "tests/test_evaluate.py::test_an_interrupted_linear_evaluation_goes_on_where_it_stopped",
    ),
    Mutant(
        "layers-learn-alike-in-fine-tuning",
        "maskcl_jax/training/optimizer.py",
        "return decay ** (last - (last if index is None else index))",
        "return decay**0",
        "tests/test_verify.py::test_every_array_is_within_its_limit[mae_layer_decay-fused]",
    ),
    Mutant(
        "exports-exchange-mean-and-std",
        "maskcl_jax/interchange/product.py",
        "return mean, std\n",
        "return std, mean\n",
        "tests/test_export.py::test_timm_preprocesses_images_that_are_not_square",
    ),
    Mutant(
        "imports-exchange-queries-and-values",
        "maskcl_jax/interchange/convert.py",
        "[values[i] for i in sorted(values)]",
        "[values[i] for i in sorted(values, reverse=True)]",
        "tests/test_import_torch.py::test_an_encoder_comes_back_bit_for_bit[mae-hf-fields1]",
    ),
    Mutant(
        "mean-IoU-divides-by-the-true-pixels",
        "maskcl_jax/evaluate/segment.py",
        "union = confusion.sum(axis=0) + confusion.sum(axis=1) - correct",
        "union = confusion.sum(axis=1)",
        "tests/test_segment.py::test_mean_iou_is_scikit_learns",
    ),
    Mutant(
        "mixup-keeps-the-labels",
        "maskcl_jax/evaluate/mixing.py",
        "kept * targets + (1.0 - kept) * targets[::-1]",
        "targets",
        "tests/test_finetune.py::test_mixup_blends_images_as_it_blends_targets",
    ),
    Mutant(
        "a-pickle-may-name-anything",
        "maskcl_jax/interchange/pickles.py",
        "        if (module, name) not in self.ALLOWED:\n"
        '            raise pickle.UnpicklingError(f"{module}.{name}")\n'
        "        return self.ALLOWED[module, name]",
        "        return super().find_class(module, name)",
        "tests/test_import_refused.py::test_a_file_that_wants_to_run_code_is_refused[model.pkl]",
    ),
    Mutant(
        "colors-are-taken-for-classes",
        "maskcl_jax/evaluate/segmentation_data.py",
        "if (color != color[..., :1]).any() or (alpha != alpha.flat[0]).any():",
        "if False:",
        "tests/test_segment.py::test_masks_that_would_measure_nothing_are_refused",
    ),
    Mutant(
        "lossy-masks-in-TIFF-are-read",
        "maskcl_jax/evaluate/segmentation_data.py",
        'in_tiff = kind == "TIFF" and compression in LOSSY_IN_TIFF',
        "in_tiff = False",
        "tests/test_segment.py::test_masks_that_would_measure_nothing_are_refused",
    ),
    Mutant(
        "lossy-masks-in-WebP-are-read",
        "maskcl_jax/evaluate/segmentation_data.py",
        'return kind == b"VP8 "',
        "return False",
        "tests/test_segment.py::test_masks_that_would_measure_nothing_are_refused",
    ),
    Mutant(
        "pairs-are-held-out-by-place",
        "maskcl_jax/evaluate/segmentation_data.py",
        "hold_out_by_name([*train], np.zeros(len(train)))",
        "hold_out_by_name([str(i) for i in range(len(train))], np.zeros(len(train)))",
        "tests/test_segment.py::test_a_new_pair_leaves_the_others_where_they_are",
    ),
]

API = [
    Mutant(
        "padding-comes-back-as-features",
        "maskcl_jax/api/encoder.py",
        "outputs.append(np.asarray(output)[: len(pixels)])",
        "outputs.append(np.asarray(output))",
        "tests/test_api.py::test_batches_of_one_shape_are_compiled_once_and_padded",
    ),
    Mutant(
        "the-encoder-shows-the-whole-image",
        "maskcl_jax/api/images.py",
        "CenterCrop(size=tuple(data_config.image_size), resize=data_config.eval_resize)",
        "CenterCrop(size=tuple(data_config.image_size))",
        "tests/test_api.py::test_large_photographs_are_cropped_as_evaluations_do",
    ),
    Mutant(
        "floats-outside-0-to-1-are-taken",
        "maskcl_jax/api/images.py",
        "if not (low >= 0 and high <= 1):",
        "if low < 0 or high > 1000:",
        "tests/test_api.py::test_images_that_cannot_be_used_are_named",
    ),
    Mutant(
        "other-images-in-memory-are-accepted",
        "maskcl_jax/data/sources/npz.py",
        '| {"pixels": train, "test_pixels": test}',
        '| {"pixels": ""}',
        "tests/test_api.py::test_an_interrupted_run_on_arrays_is_continued_by_the_same_call",
    ),
    Mutant(
        "a-module-takes-the-place-of-a-function",
        "maskcl_jax/__init__.py",
        "if not (name in _MODULE_OF and isinstance(value, types.ModuleType)):",
        "if True:",
        "tests/test_api.py::test_every_name_is_there_and_the_functions_stay_what_they_are",
    ),
    Mutant(
        "a-tracker-begins-anew",
        "maskcl_jax/training/trackers.py",
        'kept.get(name, "")',
        '""',
        "tests/test_trackers.py::test_a_run_and_its_continuation_are_one_run_there",
    ),
]

AROUND = [
    Mutant(
        "a-study-runs-again-what-is-done",
        "maskcl_jax/study/results.py",
        'return any(row["key"] == piece.key for row in self.figures + self.runs)',
        "return False",
        "tests/test_study.py::test_a_study_runs_what_is_missing_and_nothing_twice",
    ),
    Mutant(
        "a-worse-encoder-is-no-finding",
        "maskcl_jax/report/findings.py",
        'if theirs["accuracy"] <= mine["accuracy"]:',
        'if theirs["accuracy"] >= 0:',
        "tests/test_report.py::test_findings",
    ),
    Mutant(
        "checks-are-claimed-that-were-not-made",
        "maskcl_jax/report/findings.py",
        '"k-NN against raw pixels": "" if "raw pixels" in compared else missing,',
        '"k-NN against raw pixels": "",',
        "tests/test_report.py::test_a_page_lists_the_checks_that_were_made",
    ),
    Mutant(
        "every-remat-fits",
        "maskcl_jax/training/memory.py",
        "if estimate(chosen, mesh) <= MARGIN * memory:",
        "if True:",
        "tests/test_memory.py::test_the_first_that_fits_is_chosen_and_said",
    ),
    Mutant(
        "the-newest-programs-go",
        "maskcl_jax/training/compile_cache.py",
        "in sorted(entries):",
        "in sorted(entries, reverse=True):",
        "tests/test_compile_cache.py::test_the_programs_that_were_not_read_for_longest_go",
    ),
    Mutant(
        "a-ResNet-is-never-fused",
        "maskcl_jax/models/resnet.py",
        'fused.pointwise if size == 1 and kernels == "fused" else None',
        "None",
        "tests/test_models.py::test_a_resnet_has_the_kernels_that_are_asked_for",
    ),
    Mutant(
        "every-device-computes-all-keys",
        "maskcl_jax/methods/mocov2.py",
        "shuffled, _ = shard_alike(images[order], images)",
        "shuffled = images[order]",
        "tests/test_compile_check.py::test_shuffled_keys_are_computed_once_not_on_every_device",
    ),
    Mutant(
        "the-width-is-always-resized-first",
        "maskcl_jax/data/decode.py",
        "return height - size[0] > max(0, 2 * (width - size[1]))",
        "return False",
        "tests/test_decode.py::test_resizing_is_pillows",
    ),
    Mutant(
        "the-solarize-threshold-is-ignored",
        "maskcl_jax/ops/color.py",
        'return images_of(solarize(planes, p["solarize"], threshold))',
        'return images_of(solarize(planes, p["solarize"]))',
        "tests/test_color.py::test_the_solarize_threshold_of_the_config_holds_on_device_and_host",
    ),
]

# What must not be measured, kept or gone on with.
FAULTS = [
    Mutant(
        "an-evaluation-goes-on-with-other-data",
        "maskcl_jax/evaluate/fit.py",
        "if difference := checkpoints.data_difference(facts):",
        'if difference := "":',
        "tests/test_evaluate_again.py::test_other_data_are_refused_with_both_figures[linear]",
    ),
    Mutant(
        "an-evaluation-goes-on-with-other-weights",
        "maskcl_jax/evaluate/session.py",
        'return facts | {"encoder":',
        'return facts | {"_":',
        "tests/test_evaluate_again.py::test_other_weights_at_the_same_step_are_refused[linear]",
    ),
    Mutant(
        "features-of-other-data-are-kept",
        "maskcl_jax/evaluate/features.py",
        'elif difference := difference_of(stored["facts"], origin["facts"]):',
        'elif difference := "":',
        "tests/test_evaluate_again.py::test_other_data_are_refused_with_both_figures[features]",
    ),
    Mutant(
        "masks-have-no-digest",
        "maskcl_jax/evaluate/segmentation_data.py",
        "self.digests[split].update(repr(counts).encode())",
        "pass",
        "tests/test_evaluate_again.py::test_a_moved_folder_of_masks_has_the_same_facts_and_other_masks_others",
    ),
    Mutant(
        "damaged-metadata-are-not-noticed",
        "maskcl_jax/training/checkpoint.py",
        "kept = self._read(where, lambda: checkpoint_metadata.read(where))",
        "kept = {}",
        "tests/test_checkpoint.py::test_a_damaged_newest_checkpoint_is_named[metadata-emptied]",
    ),
    Mutant(
        "the-digest-of-metadata-is-not-compared",
        "maskcl_jax/training/checkpoint_metadata.py",
        'whole = digest_of(kept) == kept["digest"] if "digest" in kept else kept.keys() in WITHOUT_DIGEST',
        "whole = True",
        "tests/test_checkpoint.py::test_a_damaged_newest_checkpoint_is_named[metadata-one bit]",
    ),
    Mutant(
        "only-the-newest-metadata-are-read",
        "maskcl_jax/training/checkpoint_metadata.py",
        "for step in sorted(steps, reverse=True):",
        "for step in sorted(steps, reverse=True)[:1]:",
        "tests/test_checkpoint.py::test_a_lost_config_and_damaged_metadata_are_known_from_the_checkpoint_before[cut]",
    ),
    Mutant(
        "a-damaged-checkpoint-replaces-another",
        "maskcl_jax/training/checkpoint.py",
        "if not (self.folder / name).exists())",
        "if name)",
        "tests/test_checkpoint.py::test_a_damaged_checkpoint_is_moved_aside_as_often_as_it_is_damaged",
    ),
    Mutant(
        "orbax-reads-all-metadata",
        "maskcl_jax/training/checkpoint.py",
        "lightweight_initialize=True",
        "lightweight_initialize=False",
        "tests/test_checkpoint.py::test_metadata_that_orbax_refuses_are_no_traceback",
    ),
    Mutant(
        "a-run-without-a-whole-checkpoint-starts-anew",
        "maskcl_jax/training/checkpoint.py",
        "if older is None and not anew:",
        "if False:",
        "tests/test_checkpoint.py::test_without_a_whole_checkpoint_the_run_ends_with_one_line",
    ),
    Mutant(
        "the-checkpoint-keeps-no-config",
        "maskcl_jax/training/checkpoint.py",
        "config_lib.flat(config) if config is not None else None",
        "None",
        "tests/test_checkpoint.py::test_a_lost_config_is_known_from_the_checkpoint",
    ),
    Mutant(
        "a-damaged-step-names-no-other",
        "maskcl_jax/training/run.py",
        "others=[other for other in steps if other != step]",
        "others=[]",
        "tests/test_checkpoint.py::test_a_damaged_step_that_is_asked_for_says_which_others_there_are",
    ),
    Mutant(
        "a-damaged-evaluation-is-refused",
        "maskcl_jax/evaluate/fit.py",
        "anew=True",
        "anew=False",
        "tests/test_evaluate_again.py::test_a_damaged_checkpoint_of_an_evaluation_starts_it_anew[linear]",
    ),
    Mutant(
        "evaluations-share-no-lock",
        "maskcl_jax/evaluate/evaluation.py",
        "return run_folder.RunLock(session.run.workdir, session.name)",
        'return run_folder.RunLock(session.run.workdir, "another")',
        "tests/test_evaluate_again.py::test_two_equal_evaluations_at_once_are_one_and_a_refusal",
    ),
    Mutant(
        "an-imported-run-keeps-no-config",
        "maskcl_jax/interchange/importing.py",
        "checkpoints.save(0, run.state, run.config)",
        "checkpoints.save(0, run.state)",
        "tests/test_import_torch.py::test_an_imported_run_trains",
    ),
    Mutant(
        "online-kNN-measures-one-class",
        "maskcl_jax/training/monitor.py",
        "if problem := checks.labels_problem(labels, split):",
        'if problem := "":',
        "tests/test_evaluate.py::test_a_run_says_what_its_online_evaluation_is_worth_and_goes_on",
    ),
    Mutant(
        "online-kNN-hides-images-without-labels",
        "maskcl_jax/training/monitor.py",
        "if fraction := checks.unlabeled(",
        "if fraction := 0 * checks.unlabeled(",
        "tests/test_evaluate_again.py::test_a_run_says_once_which_images_have_no_label",
    ),
    Mutant(
        "a-full-disk-is-not-known-by-its-words",
        "maskcl_jax/errors.py",
        'words = ("No space left on device", "Disk quota exceeded")',
        "words = ()",
        "tests/test_disk_full.py::test_a_write_that_finds_the_disk_full_is_one_line_wherever_the_tests_run",
    ),
    Mutant(
        "equal-features-are-measured",
        "maskcl_jax/evaluate/checks.py",
        "if count > 1 and (high - low).max() <=",
        "if False and (high - low).max() <=",
        "tests/test_evaluate.py::test_equal_features_are_refused_before_anything_is_trained[knn]",
    ),
    Mutant(
        "outputs-may-be-NaN",
        "maskcl_jax/evaluate/checks.py",
        'return "" if finite else',
        'return "" if True else',
        "tests/test_evaluate_again.py::test_outputs_that_are_not_finite_are_no_figure",
    ),
    Mutant(
        "constant-predictions-are-not-said",
        "maskcl_jax/evaluate/checks.py",
        "if len(predicted) != 1 or",
        "if True or",
        "tests/test_evaluate_again.py::test_a_constant_prediction_is_said",
    ),
    Mutant(
        "a-diverged-head-is-chosen",
        "maskcl_jax/evaluate/linear.py",
        "np.where(held.finite, held.correct, -1).argmax()",
        "held.correct.argmax()",
        "tests/test_evaluate_again.py::test_a_head_that_has_diverged_is_not_chosen",
    ),
    Mutant(
        "what-orbax-logs-of-damage-is-shown",
        "maskcl_jax/cli.py",
        " or DAMAGE_LOGGED.search(record.getMessage())",
        "",
        "tests/test_cli.py::test_what_orbax_and_asyncio_log_of_damage_is_dropped_and_nothing_else",
    ),
]

CORNERS_AND_REFERENCES = [
    Mutant(
        "numbers-of-a-run-are-not-checked",
        "maskcl_jax/config/ranges.py",
        "    check_values(config)\n    if not",
        "    if not",
        "tests/test_config.py::test_values_out_of_range_are_named[optimizer.base_lr-nan]",
    ),
    Mutant(
        "numbers-of-an-evaluation-are-not-checked",
        "maskcl_jax/evaluate/settings.py",
        "    config_lib.check_values(settings)\n",
        "",
        "tests/test_config.py::test_evaluations_refuse_what_no_number_can_be[linear:mae-optimizer.base_lr--1]",
    ),
    Mutant(
        "an-open-end-of-a-range-is-allowed",
        "maskcl_jax/config/ranges.py",
        "under_high = number < self.high if self.below else number <= self.high",
        "under_high = number <= self.high",
        "tests/test_config.py::test_numbers_outside_their_range_are_refused_and_its_ends_are_not",
    ),
    Mutant(
        "transformers-pads-and-zooms-what-is-not-square",
        "maskcl_jax/interchange/hf_format.py",
        "if p.channels not in (1, 3) or (resize != 1.0 and height != width):",
        "if p.channels not in (1, 3):",
        "tests/test_export.py::test_preprocessing_that_transformers_cannot_express_is_not_claimed",
    ),
    Mutant(
        "any-preprocessing-passes",
        "maskcl_jax/interchange/preprocessing.py",
        "if not difference <= limit:",
        "if False:",
        "tests/test_export.py::test_another_preprocessing_is_not_exported",
    ),
    Mutant(
        "the-lines-of-an-export-turn-nothing",
        "maskcl_jax/interchange/preprocessing.py",
        "image = ImageOps.exif_transpose(image)\\n",
        "image = image.copy()\\n",
        "tests/test_export.py::test_preprocessing_is_the_runs_on_photographs_of_several_shapes",
    ),
    Mutant(
        "fsdp-splits-the-shortest-dimension",
        "maskcl_jax/training/sharding.py",
        "longest = max(divisible, key=lambda i: (shape[i], i))",
        "longest = min(divisible, key=lambda i: (shape[i], i))",
        "tests/test_sharding.py::test_the_largest_dimension_that_divides_is_split",
    ),
    Mutant(
        "MACRL-weighs-the-key-like-the-query",
        "maskcl_jax/methods/macrl.py",
        "(c.lambda_key, loss_key))",
        "(c.lambda_query, loss_key))",
        "tests/test_two_views.py::test_macrl_without_contrast_is_mae_on_both_views",
    ),
    Mutant(
        "the-mask-ratios-of-MACRL-are-exchanged",
        "maskcl_jax/methods/macrl.py",
        '(("query", "mask_ratio"), ("key", "mask_ratio_key"))',
        '(("query", "mask_ratio_key"), ("key", "mask_ratio"))',
        "tests/test_two_views.py::test_roles_can_be_swapped_and_views_made_alike",
    ),
    Mutant(
        "NT-Xent-ignores-the-temperature",
        "maskcl_jax/ops/losses.py",
        "logits = jnp.matmul(z, z.T, precision=HIGHEST) / temperature\n    logits = jnp.where(jnp.eye",
        "logits = jnp.matmul(z, z.T, precision=HIGHEST)\n    logits = jnp.where(jnp.eye",
        "tests/test_losses.py::test_nt_xent_ranks_the_other_view_among_all_others",
    ),
    Mutant(
        "SimCLR-has-a-temperature-of-its-own",
        "maskcl_jax/methods/simclr.py",
        "losses.nt_xent(first, second, self.config.method.temperature)",
        "losses.nt_xent(first, second, 0.5)",
        "tests/test_two_views.py::test_simclr_finds_the_other_view_at_its_temperature",
    ),
    Mutant(
        "RoIAlign-reads-half-a-cell-off",
        "maskcl_jax/ops/regions.py",
        "boxes.astype(jnp.float32) * scale - 0.5, -1, 0)",
        "boxes.astype(jnp.float32) * scale, -1, 0)",
        "tests/test_regions.py::test_roi_align_reads_a_plane_at_the_center_of_each_bin",
    ),
    Mutant(
        "a-hole-is-filled-with-the-mean-of-what-it-hides",
        "maskcl_jax/methods/maskco.py",
        "where=jnp.broadcast_to(~mask, images.shape))",
        "where=jnp.broadcast_to(mask, images.shape))",
        "tests/test_maskco.py::test_what_is_filled_in",
    ),
    Mutant(
        "verify-knows-one-solarize-threshold",
        "maskcl_jax/verify/saliency_cases.py",
        'color.solarize(planes, jnp.ones(1), c["solarize"] / 256)',
        "color.solarize(planes, jnp.ones(1), 0.5)",
        "tests/test_verify.py::test_the_solarize_threshold_follows_the_file",
    ),
    Mutant(
        "verify-compares-three-stages",
        "maskcl_jax/verify/convnet_cases.py",
        "for i, stage in enumerate(stages, start=1):",
        "for i, stage in enumerate(stages[:3], start=1):",
        "tests/test_verify_convnets.py::test_a_forward_pass_follows_the_file",
    ),
    Mutant(
        "the-gradient-of-LayerNorm-forgets-the-std",
        "maskcl_jax/models/kernels.py",
        "x_gradient = inverse_std * (inner - inner.mean(axis=-1, keepdims=True) - unit * projection)",
        "x_gradient = inverse_std * (inner - inner.mean(axis=-1, keepdims=True))",
        "tests/test_kernels.py::test_fused_gradients_are_those_of_float64",
    ),
    Mutant(
        "a-narrow-kernel-has-thousands-of-taps",
        "maskcl_jax/ops/fills.py",
        "round(min(FARTHEST, (taps - 1) / 2 / sigma) * scaled)",
        "round((taps - 1) / 2 / sigma * scaled)",
        "tests/test_saliency_masking.py::test_kernels_shrink_with_the_images",
    ),
    Mutant(
        "an-empty-mask-of-the-query-is-reconstructed",
        "maskcl_jax/methods/macrl.py",
        'weight = "lambda_query" if c.swap_roles else "lambda_key"',
        'weight = "lambda_key"',
        "tests/test_corners.py::test_macrl_has_something_to_reconstruct",
    ),
]

MUTANTS = [*RESUME, *TRAINING, *METHODS, *MODELS, *DATA, *EVALUATION, *API, *AROUND, *FAULTS, *CORNERS_AND_REFERENCES]
