#!/bin/bash
# drain.sh SECONDS [WHY]: this machine goes in SECONDS.
#
# Tells Ray, so that the workers of this node save and leave, and waits until the node's raylet has
# ended (Ray ends it once nothing runs there) or the time is over. Meant for a preStop hook, and
# called by drain_on_notice.sh. Exit code 0: the node is empty; 1: it was not in time; 2: no node to
# drain, or the head.
# RAY_NODE_ID chooses among several nodes on one machine.
set -u

if ! [[ ${1:-} =~ ^[0-9]+$ ]]; then
    echo "usage: drain.sh SECONDS [WHY]" >&2
    exit 2
fi
seconds=$1
why=${2:-"the machine is about to go"}

option() { # the value of a raylet's option: option PID NAME
    tr '\0' '\n' <"/proc/$1/cmdline" 2>/dev/null | sed -n "s/^--$2=//p" | head -n 1
}

mapfile -t pids < <(pgrep -f -- "^[^ ]*/raylet .*--node_id=${RAY_NODE_ID:-}")
if [[ ${#pids[@]} -ne 1 ]]; then
    echo "drain.sh: found ${#pids[@]} Ray nodes on this machine, expected 1: set RAY_NODE_ID" >&2
    exit 2
fi

raylet=${pids[0]}
address=$(option "$raylet" gcs-address)
node=$(option "$raylet" node_id)
if tr '\0' '\n' <"/proc/$raylet/cmdline" | grep -qx -- --head; then
    echo "drain.sh: this is the cluster's head; with it the run ends, and the same command goes on" >&2
    exit 2
fi
until=$((SECONDS + seconds))
ray drain-node --address "$address" --node-id "$node" \
    --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "$why" \
    --deadline-remaining-seconds "$seconds" || exit 1
while [[ -e /proc/$raylet && $(option "$raylet" node_id) == "$node" ]]; do
    if ((SECONDS >= until)); then
        echo "drain.sh: the node still has work after $seconds s" >&2
        exit 1
    fi
    sleep 0.5
done
