#!/usr/bin/env bash
# Trains on all GPUs of this machine, with one process on each.
#
#   scripts/launch/mpirun_one_node.sh [-n PROCESSES] OPTION…
#
#   scripts/launch/mpirun_one_node.sh --cp 2 --zero 1 --train-data 'data/text_train_*.bin'
#   LAUNCHER=scripts/launch/mpirun_one_node.sh scripts/recipes/530m_98k_two_stage.sh
#   scripts/launch/mpirun_one_node.sh -n 2 --device cpu --cp 2 …        without a GPU
#
# The options go to ./train_lighthouse. SIGTERM, SIGINT (Ctrl-C), SIGHUP, SIGUSR1 have it save a checkpoint and end with
# exit code 75; one more than five seconds later ends it at once. Environment: CUDA_VISIBLE_DEVICES, the GPUs to take (all),
# and OMP_NUM_THREADS (the cores divided by the processes).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
show_help "$@"
hear_signals "$@"

processes=
if [[ ${1-} == -n ]]; then
    [[ ${2-} =~ ^[1-9][0-9]{0,3}$ ]] || fail "-n ${2-}: a number of processes is expected, as in -n 2"
    processes=$2
    shift 2
fi
prepare_mpirun

count_gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES-}" ]; then
        tr , '\n' <<< "$CUDA_VISIBLE_DEVICES" | grep -c .
    else
        nvidia-smi -L 2> /dev/null | grep -c '^GPU ' || true
    fi
}

if [ -z "$processes" ]; then
    processes=$(count_gpus)
    [ "$processes" -gt 0 ] || fail "no GPU was found; -n PROCESSES --device cpu trains on the CPU"
fi
share_cores "$processes"
ranks_here=yes
run_stoppable "${mpi[@]}" --oversubscribe -np "$processes" "$root/train_lighthouse" "$@"
