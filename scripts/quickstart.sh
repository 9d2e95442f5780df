#!/usr/bin/env bash
# From a fresh machine to a trained model in a few minutes, with or without a GPU: installs what is missing, builds,
# makes token shards, and trains a small model in two stages: most steps with Lighthouse attention, then, resumed from
# the checkpoint of the first, a short tail with ordinary dense attention.
#
#   scripts/quickstart.sh            on the source of Python's standard library
#   scripts/quickstart.sh FILE…      on these files and directories (a few hundred kilobytes at least)
set -euo pipefail
files=()
for file in "$@"; do
    [ -e "$file" ] || { echo "error: $file does not exist" >&2; exit 1; }
    files+=("$(realpath -- "$file")")
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=out/quickstart
stage1=120
steps=160
# Threads that wait do so without spinning: a few percent slower on an idle machine, several times faster on a busy one.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

say() { printf '\n== %s\n' "$*"; }

say "setup"
scripts/setup.sh

say "build"
if nvidia-smi -L > /dev/null 2>&1 && { command -v nvcc > /dev/null || [ -x /usr/local/cuda/bin/nvcc ]; }; then
    device=cuda
else
    device=cpu
fi
make --no-print-directory -j "$(nproc)" DEVICE=$device

say "data"
if [ ${#files[@]} -eq 0 ]; then
    files=("$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"/*.py)
fi
shards=$(python3 dev/data/byte_shards.py --name quickstart --val-fraction 0.05 "${files[@]}")
echo "$shards"
entropy=$(sed -n 's/.*quickstart_val.*unigram entropy \([0-9.]*\).*/\1/p' <<< "$shards")

say "stage 1: $stage1 of $steps steps with Lighthouse attention"
rm -rf "$out" # of an earlier quick start
./train_lighthouse --device $device --out "$out" --model tiny --seq-len 512 --batch-size 4 --global-batch 4 \
    --train-data 'data/quickstart_train_*.bin' --val-data 'data/quickstart_val_*.bin' --val-every 40 \
    --selection on --levels 3 --pool 2 --topk 64 --topk-tile 16 --dense-layers 0,5 \
    --lr 4e-3 --warmup-steps 20 --steps $stage1 --log-every 10

say "stage 2: $((steps - stage1)) steps more with dense attention, resumed from the checkpoint of stage 1"
./train_lighthouse --device $device --out "$out" --resume latest --selection off --steps $steps |
    grep -E '^(resuming|attention:|step|done)'

say "result"
loss=$(sed -n '$s/.*"val_loss": \([0-9.]*\).*/\1/p' "$out/metrics.jsonl")
cat << END
validation loss  $loss nats per token after $steps steps
unigram entropy  $entropy nats per token: the loss of knowing how often each byte occurs, and no more
the model        $out/step_$(printf %08d $steps), an ordinary dense Llama in a Hugging Face checkpoint
every step       $out/metrics.jsonl

Train it on:     ./train_lighthouse --out $out --resume latest --steps 2000
Your own text:   scripts/quickstart.sh FILE…
The real thing:  python3 dev/data/byte_shards.py FILE… and then, on a GPU, scripts/recipes/530m_98k_two_stage.sh
All options:     ./train_lighthouse --help
END
