#!/usr/bin/env bash
# Runs the tests of several processes again and again, each time in another way: on one core or on all, with 4, 2 or 8
# processes, and by the ways that MPI has to hand on a message. MPI calls are delayed at random and what they leave
# open is used up, and new memory is NaN (dev/test/preload). Ends with "N passed, N failed", of runs; what a failed one
# said stays in build/stress.
#
#   dev/test/stress_parallel.sh [RUNS [WORDS...]]      100 runs; with words only of tests whose name contains one
#
#   FIRST=N   the number of the first run, which decides how it is run and its delays: FIRST=17 with RUNS 1 repeats run 17
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit

runs=${1:-100}
[ $# -eq 0 ] || shift
first=${FIRST:-1}
make -s build/delay_mpi.so build/nan_memory.so || exit
mkdir -p build/stress

# Open MPI takes no notice of parameters that it does not know: shared memory is vader in version 4 and sm in 5.
limits() { # limits COMPONENT...: of messages that are sent without having been asked for
    for component in "$@"; do echo "--mca btl_${component}_eager_limit 128 --mca btl_${component}_rndv_eager_limit 128"; done
}
in_pieces="--mca btl_vader_single_copy_mechanism none --mca smsc ^cma"
ways=(
    ""                             # short messages at once, long ones out of the sender's memory
    "$(limits vader sm)"           # all of them when they are asked for
    "$in_pieces"                   # long ones through shared memory
    "$(limits vader sm) $in_pieces"
    "--mca btl self,tcp $(limits tcp)"
)
processes=(4 2 8)
cores=("0" "0-$(($(nproc) - 1))")

passed=0
failed=0
for ((run = first; run < first + runs; run++)); do
    count=${processes[$((run % ${#processes[@]}))]}
    way=${ways[$((run % ${#ways[@]}))]}
    core=${cores[$((run / 2 % ${#cores[@]}))]}
    words=("$@")
    [ $# -gt 0 ] || [ "$count" -lt 8 ] || words=("8 a sequence") # what other numbers of processes do is tested with them
    log=build/stress/$run.log
    # shellcheck disable=SC2086 # a way is several words
    if OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 DELAY_SEED=$run \
        taskset -c "$core" mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 $way -np "$count" \
        env LD_PRELOAD="$PWD/build/delay_mpi.so $PWD/build/nan_memory.so" ./test_lighthouse cpu "${words[@]}" \
        > "$log" 2>&1 && grep -qE '^[1-9][0-9]* passed, 0 failed$' "$log"; then
        passed=$((passed + 1))
        rm "$log"
    else
        failed=$((failed + 1))
        echo "FAIL run $run: $count processes on cores $core${way:+, $way}: $log"
    fi
    [ $(((run - first + 1) % 10)) -ne 0 ] || echo "$((run - first + 1)) runs" >&2
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
