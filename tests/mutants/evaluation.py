"""Mistakes of evaluations, the Python interface, studies, reports and commands."""

from mutants.mutant import Mutant

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
        "an-evaluation-starts-from-0",
        "maskcl_jax/evaluate/fit.py",
        "state: Any = checkpoints.restore_newest(abstract, say, move=True, or_none=True)",
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
        "tests/test_export_preprocessing.py::test_timm_preprocesses_images_that_are_not_square",
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
        "maskcl_jax/evaluate/masks.py",
        "if (color != color[..., :1]).any() or (alpha != alpha.flat[0]).any():",
        "if False:",
        "tests/test_segment.py::test_masks_that_would_measure_nothing_are_refused",
    ),
    Mutant(
        "lossy-masks-in-TIFF-are-read",
        "maskcl_jax/evaluate/masks.py",
        'in_tiff = kind == "TIFF" and compression in LOSSY_IN_TIFF',
        "in_tiff = False",
        "tests/test_segment.py::test_masks_that_would_measure_nothing_are_refused",
    ),
    Mutant(
        "lossy-masks-in-WebP-are-read",
        "maskcl_jax/evaluate/masks.py",
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
        "digest_of(self._opened[split].images)",
        '""',
        "tests/test_api_pretrain.py::test_an_interrupted_run_on_arrays_is_continued_by_the_same_call",
    ),
    Mutant(
        "a-module-takes-the-place-of-a-function",
        "maskcl_jax/__init__.py",
        "if not (name in _MODULE_OF and isinstance(value, types.ModuleType)):",
        "if True:",
        "tests/test_api.py::test_every_name_is_there_and_the_functions_stay_what_they_are",
    ),
    Mutant(
        "a-tracker-begins-again",
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
        "figures-of-other-presets-are-taken-over",
        "maskcl_jax/study/presets.py",
        "old[name].get(f, v) != v",
        "False",
        "tests/test_study.py::test_figures_of_other_presets_are_not_those_of_todays",
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
        "tests/test_resnets.py::test_a_resnet_has_the_kernels_that_are_asked_for",
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
