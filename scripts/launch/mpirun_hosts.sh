#!/usr/bin/env bash
# Trains on the GPUs of several hosts, with one process on each.
#
#   scripts/launch/mpirun_hosts.sh HOSTFILE OPTION…
#
# HOSTFILE has a line for each host, with its number of GPUs: "node1 slots=8". Processes are numbered in that order, so the
# --cp processes that share sequences are on one host if --cp divides its slots. The hosts are reached by ssh without a
# password, and have this directory, the data and --out under the same paths (a shared filesystem), and the same OpenMPI.
#
# The options go to ./train_lighthouse. SIGTERM, SIGINT (Ctrl-C), SIGHUP, SIGUSR1 have it save a checkpoint and end with
# exit code 75; one more than five seconds later ends it at once. Environment:
#
#   INTERFACE           the network interface that all hosts reach each other by, as eth0. Needed where hosts have others
#                       too that lead nowhere (docker0, say): a run that hangs at its start is the sign. It sets
#                       NCCL_SOCKET_IFNAME and OpenMPI's btl_tcp_if_include and oob_tcp_if_include. NCCL finds
#                       InfiniBand by itself; NCCL_IB_HCA names the adapters, NCCL_DEBUG=INFO shows what it took.
#   OMPI_MCA_NAME       any parameter of OpenMPI, as OMPI_MCA_plm_rsh_agent='ssh -p 2222'
#   OMP_NUM_THREADS     (this host's cores divided by its slots)
#   PATH, LD_LIBRARY_PATH and NCCL_…, CUDA_…, OMP_…, UCX_… are set on the other hosts as they are here.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
show_help "$@"
hear_signals "$@"

example='a line for each host is expected, as "node1 slots=8"'
[ $# -gt 0 ] || fail "HOSTFILE is needed; --help says more"
hostfile=$1
shift
[ -f "$hostfile" ] || fail "the host file $hostfile does not exist; $example"
wrong=$(sed 's/#.*//' "$hostfile" | grep -vE '^[[:space:]]*$|[[:space:]]slots *= *[1-9][0-9]*([[:space:]]|$)' | head -n 1) || true
[ -z "$wrong" ] || fail "$hostfile: \"$wrong\" has no slots=GPUS; $example"
slots=$(sed -nE 's/#.*//; s/.*[[:space:]]slots *= *([1-9][0-9]*).*/\1/p' "$hostfile")
[ -n "$slots" ] || fail "$hostfile names no host; $example"
prepare_mpirun

share_cores "$(sort -n <<< "$slots" | tail -n 1)"
if [ -n "${INTERFACE-}" ]; then
    export NCCL_SOCKET_IFNAME=$INTERFACE OMPI_MCA_btl_tcp_if_include=$INTERFACE OMPI_MCA_oob_tcp_if_include=$INTERFACE
fi
# mpirun notices that a host has failed when its ssh ends: with these options after 20 seconds, else after 15 minutes.
export OMPI_MCA_plm_rsh_args=${OMPI_MCA_plm_rsh_args:--o ServerAliveInterval=5 -o ServerAliveCountMax=3}
for name in $(compgen -e); do
    case $name in
        PATH | LD_LIBRARY_PATH | NCCL_* | CUDA_* | OMP_* | UCX_*) mpi+=(-x "$name") ;;
    esac
done
processes=$(awk '{ n += $1 } END { print n }' <<< "$slots")
run_stoppable "${mpi[@]}" --hostfile "$hostfile" --map-by slot -np "$processes" "$root/train_lighthouse" "$@"
