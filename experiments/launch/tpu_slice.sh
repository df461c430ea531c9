#!/usr/bin/env bash
# From anywhere with gcloud: tpu_slice.sh create|install|run|delete [arguments of experiments.run]
# Environment: TPU_NAME, ZONE, BUCKET (gs://...), REPOSITORY (to clone); ACCELERATOR_TYPE and
# RUNTIME_VERSION for v5p or another size; PYTHON, an interpreter of version 3.11 or newer on the hosts,
# if python3 is older. The record is on the disk of the first host: copy it before `delete`.
# Not run by the authors.
set -euo pipefail
: "${TPU_NAME:?}" "${ZONE:?}"
accelerator=${ACCELERATOR_TYPE:-v5litepod-256}
runtime=${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}
python=${PYTHON:-python3}

everywhere() { # runs a command on all hosts of the slice
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="$1"
}

action=${1:?create, install, run or delete}
shift
case $action in
  create)
    gcloud compute tpus tpu-vm create "$TPU_NAME" --zone="$ZONE" \
      --accelerator-type="$accelerator" --version="$runtime" ;;
  install) # rerun it to update the clone
    everywhere "$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      { echo '$python is older than 3.11: set PYTHON' >&2; exit 1; }
      { test -d nlcg || git clone ${REPOSITORY:?} nlcg; } && cd nlcg && git pull --ff-only &&
      $python -m venv .venv &&
      .venv/bin/pip install --quiet '.[experiments,tpu]' 'etils[epath-gcs]'" ;;
  run) # rerun it to resume
    everywhere "cd nlcg && .venv/bin/python -m experiments.run --processes.auto \
      --checkpoint-dir ${BUCKET:?}/checkpoints --record runs/run.jsonl ${*:+$(printf '%q ' "$@")}" ;;
  delete)
    gcloud compute tpus tpu-vm delete "$TPU_NAME" --zone="$ZONE" ;;
  *)
    echo "unknown action '$action'; allowed are create, install, run and delete" >&2
    exit 2 ;;
esac
