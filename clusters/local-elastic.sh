#!/bin/bash
# local-elastic.sh [CONFIG]: the cluster of local-elastic.yaml, in the foreground, until Ctrl-C.
#
# Everything listens on 127.0.0.1 and wants the token of ~/.ray/auth_token (made if there is none),
# because other users of this machine reach 127.0.0.1 too. DASHBOARD_PORT (8265) is where jobs are
# sent to.
set -u

config=${1:-$(dirname "$0")/local-elastic.yaml}
address=$(sed -n 's/^ *gcs_address: *\([^ ]*\).*/\1/p' "$config")
if [[ -z $address ]]; then
    echo "local-elastic.sh: no gcs_address in $config" >&2
    exit 2
fi
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
if [[ $RAY_AUTH_MODE == token && -z ${RAY_AUTH_TOKEN:-} ]]; then
    ray get-auth-token --generate >/dev/null || exit 1
fi
export RAY_FAKE_CLUSTER=1                      # the provider wants to hear it
export RAY_enable_autoscaler_v2=1              # as `ray up`; the first one replaces no dead node
export RAY_CLOUD_INSTANCE_ID=fffffffffffffffffffffffffffffffffffffffffffffffffff00000
export RAY_OVERRIDE_NODE_ID_FOR_TESTING=$RAY_CLOUD_INSTANCE_ID # the provider knows its head by it
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0     # Ray's name for "all nodes have 127.0.0.1"
export RAY_TRAIN_V2_ENABLED=1 RAY_USAGE_STATS_ENABLED=0
export RAY_worker_niceness=0                   # Ray's own 15 starves workers beside other work
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # Ctrl-C ends it at once
export AUTOSCALER_UPDATE_INTERVAL_S=1 AUTOSCALER_HEARTBEAT_TIMEOUT_S=10
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

end() { # the autoscaler's nodes are no children of `ray start`: they are known by the address
    trap - EXIT INT TERM
    kill "$head" 2>/dev/null
    pkill -f -- "--gcs-address=$address( |\$)"
    wait "$head"
}
trap end EXIT
trap 'exit 130' INT TERM
ray start --head --block --port "${address##*:}" --node-ip-address "${address%:*}" --num-cpus 0 \
    --dashboard-host 127.0.0.1 --dashboard-port "${DASHBOARD_PORT:-8265}" \
    --object-store-memory 200000000 --autoscaling-config "$config" \
    --system-config '{"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}' &
head=$!
wait "$head"
