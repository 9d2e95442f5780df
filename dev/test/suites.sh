# Runs test suites and sums them up; run.sh and .ci/run source it.
# shellcheck shell=bash

passed=0
failed=0

# Runs one suite and prints what it prints, but for its closing "N passed, N failed", which is added to the sum. A suite
# that ends without it, or fails without a failed test, counts as one failure.
run_suite() {
    local suite_passed=0 suite_failed=0 status counts
    counts=$(mktemp)
    # A shell reads line by line, and keeps none back as some awks do.
    "$@" 2>&1 | while IFS= read -r line || [ -n "$line" ]; do
        if [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
            echo "${BASH_REMATCH[1]} ${BASH_REMATCH[2]}" > "$counts"
        else
            printf '%s\n' "$line"
        fi
    done
    status=${PIPESTATUS[0]}
    read -r suite_passed suite_failed < "$counts" || true
    rm -f "$counts"
    if [ $((suite_passed + suite_failed)) -eq 0 ] || { [ "$status" -ne 0 ] && [ "$suite_failed" -eq 0 ]; }; then
        echo "FAIL $* ended with exit code $status"
        suite_failed=1
    fi
    passed=$((passed + suite_passed))
    failed=$((failed + suite_failed))
}

# Runs a command that is one test: it passes if it ends with exit code 0.
run_step() {
    if "$@"; then
        echo "ok   $*"
        passed=$((passed + 1))
    else
        echo "FAIL $*"
        failed=$((failed + 1))
    fi
}

# The last line; fails if anything did.
sum_up() {
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
}
