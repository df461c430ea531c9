#!/usr/bin/env bash
# On GKE: xpk.sh WORKLOAD [arguments of experiments.run]
# Environment: CLUSTER, IMAGE (with this repository and its extras "experiments" and "tpu"),
# BUCKET (gs://...); TPU_TYPE for another size. JobSet restarts all processes together, in new
# containers: a new record starts at the checkpoint unless --record names a mounted folder.
# The image needs Python 3.11 or newer. Not run by the authors.
set -euo pipefail
workload=${1:?name of the workload}
shift
exec xpk workload create --cluster "${CLUSTER:?}" --workload "$workload" \
  --tpu-type="${TPU_TYPE:-v5litepod-256}" --num-slices=1 --max-restarts=20 \
  --docker-image "${IMAGE:?}" \
  --command "python -m experiments.run --processes.auto \
    --checkpoint-dir ${BUCKET:?}/$workload ${*:+$(printf '%q ' "$@")}"
