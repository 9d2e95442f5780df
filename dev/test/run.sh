#!/usr/bin/env bash
# Runs the self-test and the end-to-end tests, and ends with one line that sums them up: "N passed, N failed".
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

counts=$(mktemp)
trap 'rm -f "$counts"' EXIT
passed=0
failed=0

# Runs one suite and prints what it prints, but for its closing "N passed, N failed", which is added to the sum. A suite
# that ends without it, or fails without a failed test, counts as one failure.
run_suite() {
    local suite_passed suite_failed status
    echo "0 0" > "$counts"
    "$@" 2>&1 | awk -v counts="$counts" '/^[0-9]+ passed, [0-9]+ failed$/ { print $1, $3 > counts; next }
                                         { print; fflush() }'
    status=${PIPESTATUS[0]}
    read -r suite_passed suite_failed < "$counts"
    if [ $((suite_passed + suite_failed)) -eq 0 ] || { [ "$status" -ne 0 ] && [ "$suite_failed" -eq 0 ]; }; then
        echo "FAIL $* ended with exit code $status"
        suite_failed=1
    fi
    passed=$((passed + suite_passed))
    failed=$((failed + suite_failed))
}

# Several processes on the cores there are: none may spin while another has work.
run_parallel() {
    local processes=$1
    shift
    OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
        run_suite mpirun --oversubscribe --mca mpi_yield_when_idle 1 -np "$processes" ./test_lighthouse cpu "$@"
}

run_suite ./test_lighthouse
if ldd ./test_lighthouse | grep -q libmpi; then
    run_parallel 2
    run_parallel 4
    run_parallel 8 "8 a sequence"
fi
run_suite python3 dev/test/end_to_end.py
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
