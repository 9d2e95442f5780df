#!/usr/bin/env bash
# Runs the self-test and the end-to-end tests, and ends with one line that sums them up: "N passed, N failed".
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
# shellcheck source=dev/test/suites.sh
. dev/test/suites.sh

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
sum_up
