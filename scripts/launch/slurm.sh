#!/usr/bin/env bash
# Trains on the GPUs of a Slurm job, with one process (task) on each. Submitted from the repository's root:
#
#   sbatch [OPTION OF SBATCH…] scripts/launch/slurm.sh OPTION…
#   sbatch [OPTION OF SBATCH…] scripts/launch/slurm.sh RECIPE [OPTION…]
#
#   OUT=out/run sbatch --nodes 2 scripts/launch/slurm.sh --cp 2 --zero 1 --train-data 'data/text_train_*.bin'
#   sbatch --nodes 4 scripts/launch/slurm.sh scripts/recipes/530m_1m_four_nodes.sh
#
# The options go to ./train_lighthouse, or to the recipe. Checkpoints go to OUT (out/slurm, or the recipe's), and a job that
# is started again goes on there: it puts itself back into the queue when it was preempted or five minutes before the end of
# its time, after a checkpoint; Slurm does so when a node fails. scancel ends it, with a checkpoint if one takes less than
# Slurm's KillWait. What follows are defaults: options of sbatch go over them.

#SBATCH --job-name=train_lighthouse
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@300

set -euo pipefail
# Slurm runs a copy of this script elsewhere, so common.sh is found from the directory of the submission.
source "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/../..}/scripts/common.sh"
show_help "$@"
hear_signals "$@"
[ -n "${SLURM_JOB_ID-}" ] || fail "this runs in a Slurm job: sbatch scripts/launch/slurm.sh …; --help says more"
[ $# -gt 0 ] || fail "train_lighthouse's options or a recipe are needed; --help says more"
need_trainer
cd "$root"

cores=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cores} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
# --kill-on-bad-exit=0: else the first task that ends with 75 would kill the others, which are about to end so too.
export LAUNCHER="srun --mpi=pmix --kill-on-bad-exit=0 --wait=60 --cpus-per-task=$cores ./train_lighthouse"

status=0
if [[ $1 == -* ]]; then
    find_trainer
    find_place "${OUT:-out/slurm}"
    run_stoppable "${trainer[@]}" "${place[@]}" "$@" || status=$?
else
    run_stoppable "$@" || status=$?
fi
if [ "$status" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
