#!/usr/bin/env bash
# The job that slurm.sh submits; do not call it by hand. Arguments: those of maskcl_jax.main.
set -euo pipefail

[[ -n ${SLURM_JOB_ID:-} ]] || { echo "error: this is not a SLURM job: use launch/slurm.sh" >&2; exit 2; }
# Under SLURM, JAX gives each process one GPU by default; here a process has all GPUs of its node.
JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
export JAX_LOCAL_DEVICE_IDS XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}

trap : TERM # the training processes receive it too: wait until they have saved
status=0
srun --kill-on-bad-exit=0 python -m maskcl_jax.main "$@" || status=$?
if ((status == 143)); then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
