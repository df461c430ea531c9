#!/usr/bin/env bash
# On a machine with one GPU: one_gpu.sh SOURCE [arguments of experiments.studies.cifar100]
# SOURCE is a folder with CIFAR-100 (any form that `experiments.data.prepare` reads). Checks the device,
# then trains ResNet-32 on all of CIFAR-100 at batch 16,384: the paper's recipe first, then the tuned
# rows, the most important first. A call starts no run that is expected, from the longest so far, to end
# after PART_SECONDS (540); the first may take longer. Rerun it, and it resumes.
# Environment: DATA_DIR, PART_SECONDS.
set -euo pipefail
source=${1:?folder with CIFAR-100}
shift
data=${DATA_DIR:-data}
python -c 'import jax; print("device:", jax.devices()[0].device_kind)'
test -e "$data/cifar100.npz" ||
  python -m experiments.data.prepare cifar100 --source "$source" --form arrays --data-dir "$data"
exec python -m experiments.studies.cifar100 --size gpu --seconds "${PART_SECONDS:-540}" --data-dir "$data" "$@"
