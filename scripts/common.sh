# Functions shared by the scripts, which source this file. Sourcing it changes neither directory nor environment.
# shellcheck shell=bash disable=SC2034

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
    echo "error: $1" >&2
    exit 1
}

# With --help as the first argument, prints the comment at the head of the script that was started, and ends.
show_help() {
    if [[ ${1-} == -h || ${1-} == --help ]]; then
        sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "$0"
        exit
    fi
}

need_trainer() {
    [ -x "$root/train_lighthouse" ] || fail "./train_lighthouse is not built; run scripts/setup.sh and make"
}

# --- recipes ----------------------------------------------------------------------------------------------------------

# Sets `trainer` to the command to which train_lighthouse's options are given: LAUNCHER's words, or train_lighthouse.
find_trainer() {
    need_trainer
    read -ra trainer <<< "${LAUNCHER:-./train_lighthouse}"
}

# Sets `place` to the options with which a run writes to this directory and, if it has a checkpoint, resumes from it.
find_place() {
    place=(--out "$1")
    if [ -f "$1/latest" ]; then place+=(--resume latest); fi
}

# Prints the step of the newest checkpoint in this directory, or nothing.
newest_step() {
    [ ! -f "$1/latest" ] || sed -n 's/^step_0*\([0-9]\{1,\}\)$/\1/p' "$1/latest"
}

# --- signals ----------------------------------------------------------------------------------------------------------

# Runs a command in a session of its own, so that signals reach only this script, and passes each SIGTERM, SIGINT, SIGHUP
# and SIGUSR1 on to it as SIGUSR1: mpirun forwards SIGUSR1 to its processes (at the others it would kill them), and
# train_lighthouse then saves a checkpoint and ends with exit code 75. Returns the command's exit code; `stop_signal` is
# the name of the last signal, or empty.
run_stoppable() {
    local status child='' again
    stop_signal=''
    # shellcheck disable=SC2317 # the traps call it
    pass_on() {
        stop_signal=$1
        again=yes
        if [ -n "$child" ]; then kill -USR1 "$child" 2> /dev/null || true; fi
    }
    for signal in TERM INT HUP USR1; do
        # shellcheck disable=SC2064 # this signal's name
        trap "pass_on SIG$signal" "$signal"
    done
    setsid "$@" < /dev/null &
    child=$!
    if [ -n "$stop_signal" ]; then pass_on "$stop_signal"; fi
    # A signal ends this wait but not the command, so wait again.
    while
        again=''
        status=0
        wait "$child" || status=$?
        [ -n "$again" ]
    do :; done
    trap - TERM INT HUP USR1
    return "$status"
}

# --- mpirun -----------------------------------------------------------------------------------------------------------

# Sets `mpi` to mpirun with the options of every run: no binding (the default, one core per process, starves OpenMP), and
# waiting processes yield their core.
prepare_mpirun() {
    need_trainer
    command -v mpirun > /dev/null || fail "mpirun was not found; scripts/setup.sh installs OpenMPI"
    mpi=(mpirun --bind-to none --mca mpi_yield_when_idle 1)
    if [ "$(id -u)" -eq 0 ]; then mpi+=(--allow-run-as-root); fi
}

# Exports the OpenMP settings for each of N processes on this machine, unless they are set.
share_cores() {
    local threads=$(($(nproc) / $1))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
}
