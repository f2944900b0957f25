"""Mistakes of methods and models."""

from mutants.mutant import Mutant

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
        "tests/test_resnets.py::test_batch_norm_of_feature_maps_is_torchs",
    ),
    Mutant(
        "BatchNorms-groups-are-ignored",
        "maskcl_jax/models/batch_norm.py",
        "self.group_size or x.shape[0]",
        "x.shape[0]",
        "tests/test_resnets.py::test_batch_norm_normalizes_within_groups",
    ),
    Mutant(
        "position-tables-take-the-nearest-row",
        "maskcl_jax/models/vit.py",
        "np.where(distance <= 1, near, far)",
        "np.where(distance <= 0.5, 1.0, 0.0)",
        "tests/test_encoder.py::test_another_image_size_resizes_the_positions_as_torch_does[size0-grid0]",
    ),
    Mutant(
        "blocks-compute-in-float32",
        "maskcl_jax/models/vit.py",
        'options = {"dtype": self.dtype, "attention"',
        'options = {"dtype": jnp.float32, "attention"',
        "tests/test_attention.py::test_networks_multiply_in_16_bits[mae-0]",
    ),
]
