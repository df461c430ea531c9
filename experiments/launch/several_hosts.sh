#!/usr/bin/env bash
# On each host: several_hosts.sh COORDINATOR COUNT INDEX [arguments of experiments.run]
# COORDINATOR is the address of host 0 and a free port, such as 10.0.0.1:8476, the same on every host.
set -euo pipefail
coordinator=${1:?address and port of host 0} count=${2:?number of hosts} index=${3:?number of this host, from 0}
shift 3
exec python -m experiments.run \
  --processes.coordinator "$coordinator" --processes.count "$count" --processes.index "$index" \
  --checkpoint-dir "${CHECKPOINT_DIR:?a folder or bucket that all hosts can access}" "$@"
