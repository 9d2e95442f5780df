#!/usr/bin/env bash
# The published run (arXiv 2605.06554): 530M parameters, 98304 tokens of context, 32 sequences a step. Stage 1 trains
# with Lighthouse attention, stage 2 ends it with ordinary dense attention. Started again, it goes on where it was.
#
#   scripts/recipes/530m_98k_two_stage.sh [STAGE1_STEPS TOTAL_STEPS] [OPTION…]     10000 and 16000 steps, as published
#
# The options go to ./train_lighthouse, over the ones here. Environment: DATA and VAL_DATA, globs of token shards
# (data/text_train_*.bin, data/text_val_*.bin; VAL_DATA= for no validation), OUT, where checkpoints and metrics go
# (out/530m_98k_two_stage), and LAUNCHER, what starts train_lighthouse (itself): scripts/launch/mpirun_one_node.sh takes all GPUs.
# Relative paths are from the current directory, as those of the launchers; the ones in parentheses from the repository.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
show_help "$@"
hear_signals "$@"

stage1=10000
total=16000
if [[ $# -gt 0 && $1 != -* ]]; then
    [[ $# -ge 2 && $2 != -* ]] || fail "STAGE1_STEPS $1 without TOTAL_STEPS; for example $stage1 $total"
    stage1=$1
    total=$2
    shift 2
fi
for steps in "$stage1" "$total"; do
    [[ $steps =~ ^[1-9][0-9]{0,14}$ ]] || fail "$steps is no number of steps; for example 10000 16000"
done
[ "$stage1" -lt "$total" ] || fail "STAGE1_STEPS $stage1 must be less than TOTAL_STEPS $total, which counts both stages"
find_trainer

out=${OUT:-$root/out/530m_98k_two_stage}
recipe=(--model 530M --seq-len 98304 --batch-size 1 --global-batch 32
    --levels 3 --pool 4 --topk 1536 --dense-layers "0,1,28,29"
    --lr 2e-3 --warmup-steps 2000 --lr-schedule constant --weight-decay 0.1 --grad-clip 1
    --save-every 500 --keep-every "$stage1") # keeps the last checkpoint of stage 1: stage 2 can be repeated from it
always=(--out "$out" --train-data "${DATA:-$root/data/text_train_*.bin}" --val-data "${VAL_DATA-$root/data/text_val_*.bin}" "$@")

step=$(newest_step "$out")
if [ -z "$step" ]; then
    run_stoppable "${trainer[@]}" "${recipe[@]}" "${always[@]}" --selection on --steps "$stage1"
elif [ "$step" -le "$stage1" ]; then # -le: a damaged last checkpoint is replaced by an older one
    run_stoppable "${trainer[@]}" "${always[@]}" --resume latest --selection on --steps "$stage1"
fi
if [ -n "${stop_signal-}" ]; then exit 75; fi # a stop was requested just when stage 1 ended
step=$(newest_step "$out")
if [ "$step" -ge "$total" ]; then
    echo "nothing to do: $out has step $step of $total"
else
    run_stoppable "${trainer[@]}" "${always[@]}" --resume latest --selection off --steps "$total"
fi
