#!/usr/bin/env bash
# The published run at 1048576 tokens of context (arXiv 2605.06554): the 530M model on 32 GPUs of four hosts. Eight GPUs share
# a sequence, so four sequences are trained at a time. All else is as in scripts/recipes/530m_1m_one_gpu.sh.
#
#   scripts/recipes/530m_1m_four_nodes.sh [OPTION…]
#   sbatch --nodes 4 scripts/launch/slurm.sh scripts/recipes/530m_1m_four_nodes.sh [OPTION…]
#
# The options go to ./train_lighthouse, over the ones here: with other numbers of GPUs, --cp and --global-batch. Started
# again, it goes on where it was. Environment: HOSTS, the file that names the hosts (hosts; scripts/launch/mpirun_hosts.sh --help
# says more), or LAUNCHER, what starts train_lighthouse instead, as scripts/launch/mpirun_one_node.sh; DATA and VAL_DATA, globs of
# token shards with documents of this length (data/linux_train_*.bin, data/linux_val_*.bin), and OUT (out/530m_1m).
# Relative paths are from the current directory, as those of the launchers; the ones in parentheses from the repository.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
show_help "$@"

export LAUNCHER=${LAUNCHER:-scripts/launch/mpirun_hosts.sh ${HOSTS:-hosts}}
exec "$root/scripts/recipes/530m_1m_one_gpu.sh" --cp 8 --zero 1 --global-batch 4 "$@"
