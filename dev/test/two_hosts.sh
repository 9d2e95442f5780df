#!/usr/bin/env bash
# Trains on two hosts: network namespaces of this machine, with addresses, names, process ids and an sshd of their own and a
# link between them. Compares with one process; then the run is asked to stop, a host dies, and the link is cut. Ends with "N passed, N failed".
#
#   dev/test/two_hosts.sh
#
# Needs root with the right to make namespaces, ip (iproute2), ssh and sshd (openssh-client, openssh-server), OpenMPI, and
# ./train_lighthouse, of which it uses the CPU. Where something is missing, it says so: "skipped: …", exit code 0.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH=$PATH:/usr/sbin:/sbin

skip() {
    echo "skipped: $1"
    exit 0
}

[ "$(id -u)" -eq 0 ] || skip "only root makes network namespaces"
for program in ip ssh ssh-keygen sshd mpirun unshare pgrep python3; do
    command -v $program > /dev/null ||
        skip "$program was not found (apt-get install iproute2 openssh-client openssh-server openmpi-bin procps)"
done
[ -x train_lighthouse ] || skip "./train_lighthouse is not built"

passed=0
failed=0
made=
dir=$(mktemp -d)
a=lighthouse-a-$$ # the names of the hosts and of their namespaces
b=lighthouse-b-$$
declare -A started=() # by name, for hosts and a run: the parent of the first process in a namespace, whose end ends all of it

# Ends what was started under this name, if it still runs; returns its exit code.
shut_down() {
    local process=${started[$1]-}
    [ -n "$process" ] || return 0
    unset "started[$1]"
    pkill -KILL -P "$process" || true
    wait "$process" 2> /dev/null
}

has_ended() { ! kill -0 "${started[$1]}"; }

clean_up() {
    for name in run "$a" "$b"; do shut_down "$name" || true; done
    ip netns del "$a" 2> /dev/null || true
    ip netns del "$b" 2> /dev/null || true
    if [ -n "$made" ]; then rmdir "$made" || true; fi
    rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 1' TERM INT HUP

make_namespaces() {
    ip netns add "$a" && ip netns add "$b" && ip link add link0 netns "$a" type veth peer name link0 netns "$b" &&
        ip netns exec "$a" unshare --uts --pid --fork --mount-proc true
}
make_namespaces 2> "$dir/log" || skip "no namespaces can be made: $(tail -n 1 "$dir/log")"

# --- the hosts --------------------------------------------------------------------------------------------------------

address() { if [ "$1" = "$a" ]; then echo 198.18.0.1; else echo 198.18.0.2; fi; }

# Runs a command on a host, as the first of its processes: with it all others end.
on_host() {
    local host=$1
    shift
    # shellcheck disable=SC2016 # for sh
    exec ip netns exec "$host" unshare --uts --pid --fork --kill-child --mount-proc \
        sh -c 'hostname "$0" && exec "$@"' "$host" "$@"
}

start_up() {
    on_host "$1" "$(command -v sshd)" -D -e -f "$dir/sshd_config" -o "ListenAddress=$(address "$1")" 2> "$dir/sshd-$1" &
    started[$1]=$!
}

# Whether a host lets another in.
answers() { ip netns exec "$1" ssh -F "$dir/ssh_config" "$(address "$2")" true; }

wait_until() { # SECONDS COMMAND…
    local end=$((SECONDS + $1))
    shift
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.2
    done
}

if [ ! -d /run/sshd ]; then mkdir /run/sshd && made=/run/sshd; fi # sshd wants it
ssh-keygen -q -t ed25519 -N '' -f "$dir/host_key"
ssh-keygen -q -t ed25519 -N '' -f "$dir/key"
cat > "$dir/sshd_config" << END
HostKey $dir/host_key
AuthorizedKeysFile $dir/key.pub
StrictModes no
UsePAM no
PermitRootLogin yes
PidFile none
END
cat > "$dir/ssh_config" << END
User root
IdentityFile $dir/key
IdentitiesOnly yes
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
END
printf '%s slots=2\n' "$(address "$a")" "$(address "$b")" > "$dir/hosts"
for host in "$a" "$b"; do
    ip -n "$host" address add "$(address "$host")/30" dev link0
    ip -n "$host" link set lo up
    ip -n "$host" link set link0 up
    start_up "$host"
done
wait_until 20 answers "$a" "$b" || {
    cat "$dir/sshd-$b"
    skip "the sshd of this machine does not let root in with a key"
}

# --- runs -------------------------------------------------------------------------------------------------------------

options=(--device cpu --train-data "$dir/shards/text_train_*.bin" --model tiny --vocab-size 264 --seq-len 128
    --batch-size 1 --global-batch 4 --levels 3 --pool 2 --topk 32 --topk-tile 4 --dense-layers 0 --warmup-steps 3)
# Noise: where no two contexts are alike, what is selected does not depend on the order of sums.
head -c 100000 /dev/urandom > "$dir/noise"
python3 dev/data/byte_shards.py --out "$dir/shards" --val-fraction 0 "$dir/noise" > "$dir/log"

# Trains on both hosts, as a user of the first would.
train_on_hosts() {
    export OMP_NUM_THREADS=1 INTERFACE=link0 OMPI_MCA_plm_rsh_agent="ssh -F $dir/ssh_config"
    on_host "$a" scripts/launch/mpirun_hosts.sh "$dir/hosts" "${options[@]}" "$@"
}

# Whether two runs have the same losses, up to rounding.
same_losses() {
    python3 - "$1" "$2" << 'END'
import json, math, sys
runs = [[json.loads(line)["loss"] for line in open(f"{out}/metrics.jsonl")] for out in sys.argv[1:]]
print(*runs, sep="\n")
sys.exit(not (len(runs[0]) == len(runs[1]) > 0 and all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(*runs))))
END
}

report() { # NAME RESULT: 0 if it passed; else what was said is shown
    if [ "$2" -eq 0 ]; then
        echo "ok   $1"
        passed=$((passed + 1))
    else
        echo "FAIL $1"
        tail -n 30 "$dir/log" | sed 's/^/     /'
        failed=$((failed + 1))
    fi
}

trains_as_one() { # OUT OPTION…
    local out=$dir/$1
    shift
    (train_on_hosts --out "$out" --steps 5 "$@") > "$dir/log" 2>&1 &&
        grep -q "processes: 4" "$dir/log" && same_losses "$out" "$dir/one" >> "$dir/log" 2>&1
}

# Trains until something is done to the run after its first checkpoint; it has to end in a minute. Sets `code`.
interrupt() { # OUT WHAT OPTION…
    local out=$dir/$1 what=$2 trouble=
    shift 2
    (train_on_hosts --out "$out" --steps 100000 --save-every 5 "$@") > "$dir/log" 2>&1 &
    started[run]=$!
    if wait_until 60 test -f "$out/latest"; then $what; else trouble="no checkpoint after a minute"; fi
    wait_until 60 has_ended run || trouble=${trouble:-it still runs after a minute}
    code=0
    shut_down run || code=$?
    echo "it ended with exit code $code${trouble:+: $trouble}" >> "$dir/log"
    [ -z "$trouble" ]
}

ends_badly() { # OUT WHAT WORDS OPTION…
    local out=$1 what=$2 words=$3
    shift 3
    interrupt "$out" "$what" "$@" && [ $code -ne 0 ] && [ $code -ne 75 ] && grep -q "$words" "$dir/log"
}

is_preempted() { # OUT OPTION…
    local out=$1
    shift
    interrupt "$out" ask_to_stop "$@" && [ $code -eq 75 ] && grep -q "^stopped by SIGUSR1" "$dir/log"
}

goes_on_alone() { # OUT
    ./train_lighthouse --verify-checkpoint "$dir/$1/$(cat "$dir/$1/latest")" > "$dir/log" 2>&1 &&
        ./train_lighthouse --device cpu --resume latest --out "$dir/$1" --cp 1 \
            --steps $((10#$(sed 's/step_//' "$dir/$1/latest") + 2)) >> "$dir/log" 2>&1
}

ask_to_stop() { pkill -TERM -P "${started[run]}"; }
power_off() { shut_down "$b" || true; }
cut_link() { ip -n "$b" link set link0 down; }

echo "--- two hosts"
./train_lighthouse "${options[@]}" --out "$dir/one" --steps 5 > "$dir/log" 2>&1 || {
    cat "$dir/log"
    exit 1
}
result=0; trains_as_one within --cp 2 --zero 1 || result=1
report "sequences shared within each host" $result
result=0; trains_as_one across --cp 4 || result=1
report "sequences shared across the hosts" $result

result=0; is_preempted asked --cp 2 --zero 1 || result=1
report "a run on both that is asked to stop saves" $result
result=0; goes_on_alone asked || result=1
report "it goes on from there" $result
result=0; ends_badly dead power_off "$(address "$b")" --cp 2 --zero 1 || result=1
report "a run on a host that dies ends and names it" $result
result=0; goes_on_alone dead || result=1
report "its run goes on from the last checkpoint" $result

start_up "$b"
result=0; wait_until 20 answers "$a" "$b" && ends_badly cut cut_link "$(address "$b") not responding" --cp 4 || result=1
report "a run on a host that is cut off ends and names it" $result
result=0; goes_on_alone cut || result=1
report "its run goes on from the last checkpoint" $result

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
