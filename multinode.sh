#!/bin/sh
# multinode.sh head [FLAG...] | worker: one pod of a service that needs several nodes, as KServe
# starts them (see servingruntime/base/multinode). Becomes the server, or a node of its Ray cluster.
set -eu

# Ray's workers have their node's environment, not the server's: what entrypoint.sh sets for Python
# must be set before Ray starts, on every node alike.
export PYTHONHASHSEED="${PYTHONHASHSEED:-0}"
export LMCACHE_TRACK_USAGE="${LMCACHE_TRACK_USAGE:-false}"
export DO_NOT_TRACK="${DO_NOT_TRACK:-1}"
export VLLM_NO_USAGE_STATS="${VLLM_NO_USAGE_STATS:-1}"
export RAY_USAGE_STATS_ENABLED=0
export VLLM_HOST_IP="$POD_IP"
# How long a node goes on without its head, in seconds.
export RAY_gcs_rpc_server_reconnect_timeout_s=20

gcs_port=6379
role="$1"
shift
case "$role" in
head)
    ray start --head --node-ip-address="$POD_IP" --port="$gcs_port" --node-manager-port=6380 \
        --include-dashboard=false
    # The server would wait for the workers, too, and not say for what.
    "${PYTHON:-python3}" -m kserve_lmcache.cli.await_nodes "${RAY_NODE_COUNT:-1}"
    exec entrypoint.sh --distributed-executor-backend=ray \
        --tensor-parallel-size="$TENSOR_PARALLEL_SIZE" \
        --pipeline-parallel-size="$PIPELINE_PARALLEL_SIZE" "$@"
    ;;
worker)
    head="$HEAD_SVC.$POD_NAMESPACE.svc:$gcs_port"
    echo "Waiting for Ray's head at $head"
    until timeout 20 ray health-check --address="$head" >/dev/null 2>&1; do
        sleep 3
    done
    # Ends with the head, so that the pod starts again and joins the next head.
    exec ray start --address="$head" --node-ip-address="$POD_IP" --node-manager-port=6380 --block
    ;;
*)
    echo "multinode.sh: head or worker, not $role" >&2
    exit 2
    ;;
esac
