#!/usr/bin/env bash
# Keeps a training run going: starts it again after a crash or a preemption, from its newest checkpoint, until it is done.
#
#   scripts/launch/run_resilient.sh [--max-failures N] [--wait SECONDS] --out DIR COMMAND…
#
#   scripts/launch/run_resilient.sh --out out/run scripts/launch/mpirun_one_node.sh --cp 2 --train-data 'data/text_train_*.bin'
#   scripts/launch/run_resilient.sh --out out/530m scripts/recipes/530m_98k_two_stage.sh
#
# COMMAND, which takes train_lighthouse's options, runs with --out DIR appended, and --resume latest once DIR has a
# checkpoint. It runs again until it ends with exit code 0; it is given up after N failures in a row (3) that left no newer
# checkpoint. Exit code 75, of a run that was asked to stop, is no failure. Between tries it waits SECONDS (10), after each
# further failure without progress twice as long, up to 10 minutes. A line for each event goes to standard error.
#
# SIGTERM, SIGINT (Ctrl-C), SIGHUP, SIGUSR1 and whatever else asks train_lighthouse to stop is passed on as SIGUSR1, at which
# the run saves a checkpoint; then nothing is started again, and the exit code is the run's, 75 if all went well. All
# processes may be sent a signal, and several: within five seconds of the first they are one request. The same command goes
# on later.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
show_help "$@"
hear_signals "$@"

max_failures=3
first_wait=10
out=
while [[ ${1-} == --* ]]; do
    [ $# -ge 2 ] || fail "$1 needs a value; --help says more"
    case $1 in
        --max-failures)
            [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || fail "--max-failures $2: a number from 1 on is expected"
            max_failures=$2
            ;;
        --wait)
            [[ $2 =~ ^(0|[1-9][0-9]{0,4})$ ]] || fail "--wait $2: a whole number of seconds is expected"
            first_wait=$2
            ;;
        --out) out=$2 ;;
        *) fail "unknown option $1; --help says more" ;;
    esac
    shift 2
done
[ -n "$out" ] || fail "--out DIR is needed: where the run's checkpoints go"
[ $# -gt 0 ] || fail "a command is needed, as in scripts/launch/run_resilient.sh --out $out ./train_lighthouse --train-data …"
command -v "$1" > /dev/null || fail "$1 is no command that can be run"
out=$(realpath -m -- "$out")
export OUT=$out # recipes take the directory from it

say() { echo "run_resilient: $*" >&2 || true; } # nobody has to read it

# Waits for this many seconds before the next try. A signal ends the wait and the script.
pause() {
    run_stoppable sleep "$1" || true
    if [ -n "$stop_signal" ]; then
        say "asked to stop by $stop_signal while nothing ran"
        exit 75
    fi
}

failures=0
best=$(newest_step "$out")
for ((try = 1; ; try++)); do
    find_place "$out"
    say "try $try starts $([ -n "$best" ] && echo "from step $best" || echo anew)"
    status=0
    run_stoppable "$@" "${place[@]}" || status=$?
    step=$(newest_step "$out")
    ended="try $try ended with exit code $status, the newest checkpoint has step ${step:-none}"
    if [ "$status" -eq 0 ]; then
        say "done"
        exit
    fi
    if [ -n "$stop_signal" ]; then
        say "asked to stop by $stop_signal: $ended"
        exit "$status"
    fi
    if [ "${step:--1}" -gt "${best:--1}" ]; then
        best=$step
        failures=0
    elif [ "$status" -ne 75 ]; then
        failures=$((failures + 1))
    fi
    if [ "$failures" -ge "$max_failures" ]; then
        say "$ended: given up after $failures failures in a row without progress"
        exit "$status"
    fi
    seconds=$((failures > 1 ? first_wait << (failures > 10 ? 9 : failures - 1) : first_wait))
    if [ "$failures" -gt 1 ] && [ "$seconds" -gt 600 ]; then seconds=$((first_wait > 600 ? first_wait : 600)); fi
    say "$ended: again in $seconds seconds"
    pause "$seconds"
done
