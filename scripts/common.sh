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

# Sets `trainer` to the command to which train_lighthouse's options are given: LAUNCHER's words, or train_lighthouse. A
# launcher that is not found from the current directory is looked for from the repository's root.
find_trainer() {
    need_trainer
    trainer=("$root/train_lighthouse")
    if [ -z "${LAUNCHER-}" ]; then return; fi
    read -ra trainer <<< "$LAUNCHER"
    if [[ ${trainer[0]} != /* && ! -x ${trainer[0]} && -x $root/${trainer[0]} ]]; then trainer[0]=$root/${trainer[0]}; fi
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

# What asks a script to stop; train_lighthouse hears the same. (IO is POLL. XFSZ is not among them: a script cannot tell a
# request from its own write to a log that may not grow, which like one to a reader that is gone ends nothing.)
stop_signals=(HUP INT TERM USR1 USR2 XCPU ALRM VTALRM PROF IO PWR)
stop_signal='' # the name of the last of them that came, or empty
child=''       # the command that run_stoppable runs
ranks_here=''  # yes: it is an mpirun with processes on this host
asked=''       # those that were asked to stop
asker=''       # the process of ask_again

# From here on these signals only set `stop_signal` and are passed on to the command that runs. A shell cannot hear what was
# ignored or blocked when it was started, so with "$@", the script's arguments, the script then starts again, once, with
# none of it; a hangup ignored at the start (nohup) stays ignored.
hear_signals() {
    local key mask held=0 signal reset IFS=,
    reset="${stop_signals[*]:1}"
    unset IFS
    while read -r key mask; do
        case $key in SigBlk: | SigIgn:) held=$((held | 16#$mask)) ;; esac
    done < /proc/$$/status
    for signal in "${stop_signals[@]:1}"; do
        if ((held >> ($(kill -l "$signal") - 1) & 1)) && [ "${HEARS_SIGNALS-}" != $$ ] &&
            env --default-signal="$reset" true 2> /dev/null; then
            HEARS_SIGNALS=$$ exec env --default-signal="$reset" "$BASH" "$0" "$@"
        fi
    done
    trap '' PIPE XFSZ
    # shellcheck disable=SC2064 # this signal's name
    for signal in "${stop_signals[@]}"; do trap "stop_signal=SIG$signal; again=yes; ask" "$signal"; done
}

# Whether a process catches SIGUSR1. It may have just begun.
listens() {
    local key mask
    while read -r key mask; do
        # In a trap, return needs its value: by itself it takes that of what the trap interrupted.
        if [ "$key" = SigCgt: ] && ((16#$mask >> ($(kill -l USR1) - 1) & 1)); then return 0; fi
    done 2> /dev/null < "/proc/$1/status"
    return 1
}

# Asks the command to stop: not an mpirun but the processes that it runs on this host, since it forwards SIGUSR1 neither
# before they are started nor well when they end (its exit code is 255 then). One of them asks all others. With `again`,
# only those that were not asked yet.
pass_on() {
    local status name id parent
    for status in /proc/[0-9]*/stat; do
        # The name of a process is cut to 15 letters.
        { read -r id name _ parent _ < "$status"; } 2> /dev/null || continue
        if [[ $name != '(train_lighthous)' || $parent != "$child" ]]; then continue; fi
        ranks_here=yes
        if [[ ${1-} == again && $asked == *" $id "* ]] || ! listens "$id"; then continue; fi
        asked+=" $id "
        kill -USR1 "$id" 2> /dev/null || true
    done
    if [ -z "$ranks_here" ]; then kill -USR1 "$child" 2> /dev/null || true; fi
}

# What the command starts may not be there yet, or not listen: asks again until the command ends, the command itself only
# for less than the five seconds within which requests are one.
ask_again() {
    local i
    for ((i = 1; ; i++)); do
        sleep 1
        kill -0 "$child" 2> /dev/null || return 0
        if [ -n "$ranks_here" ] || [ "$i" -le 2 ]; then pass_on again; fi
    done
}

ask() {
    [ -n "$child" ] || return 0
    pass_on
    [ -z "$asker" ] || return 0
    since=$SECONDS
    ask_again > /dev/null 2>&1 &
    asker=$!
    disown # bash would report its end
}

# Whether an exit code is that of a death by a request.
died_of_request() {
    local signal
    for signal in "${stop_signals[@]}"; do
        if [ "$1" -eq $((128 + $(kill -l "$signal"))) ]; then return 0; fi
    done
    return 1
}

# Runs a command in a session of its own, so that a terminal's signals reach only this script, and passes each request to
# stop on to it as SIGUSR1, at which train_lighthouse saves a checkpoint and ends with exit code 75. Returns the command's
# exit code; 75 too where it did not listen yet and died of the request (only later, when it insists, does one end a run
# that listens), or was not started at all.
run_stoppable() {
    local status again since=$SECONDS
    [ -z "$stop_signal" ] || return 75
    asker=''
    setsid "$@" < /dev/null &
    child=$!
    if [ -n "$stop_signal" ]; then ask; fi
    # A signal ends this wait but not the command, so wait again.
    while
        again=''
        status=0
        wait "$child" || status=$?
        [ -n "$again" ]
    do :; done
    child=''
    if [ -n "$asker" ]; then kill "$asker" 2> /dev/null || true; fi
    if [ -n "$stop_signal" ] && [ $((SECONDS - since)) -lt 5 ] && died_of_request "$status"; then status=75; fi
    return "$status"
}

# --- mpirun -----------------------------------------------------------------------------------------------------------

# Sets `mpi` to mpirun with the options of every run: no binding (the default, one core per process, starves OpenMP), and
# waiting processes yield their core. What would make mpirun kill them is kept from it: they hear it themselves, or by
# run_stoppable. It starts them with nothing blocked.
prepare_mpirun() {
    need_trainer
    command -v mpirun > /dev/null || fail "mpirun was not found; scripts/setup.sh installs OpenMPI"
    mpi=()
    if env --block-signal=TERM true 2> /dev/null; then
        mpi=(env --block-signal="HUP,INT,TERM,USR2,XCPU,XFSZ,ALRM,VTALRM,PROF,IO,PWR,PIPE")
    fi
    mpi+=(mpirun --bind-to none --mca mpi_yield_when_idle 1)
    if [ "$(id -u)" -eq 0 ]; then mpi+=(--allow-run-as-root); fi
}

# Exports the OpenMP settings for each of N processes on this machine, unless they are set.
share_cores() {
    local threads=$(($(nproc) / $1))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
}
