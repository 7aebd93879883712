#!/bin/sh
# sentinel.sh store|sentinel SERVER CLI: starts one container of a pod POD_NAME, by the name that
# the other pods know it by. Who is the primary, the sentinels that run say; at the very first
# start there are none, and it is the first pod.
set -eu
umask 077
service=lmcache-remote
own="$POD_NAME.$service"
pods="$service-0 $service-1 $service-2"

primary=
for pod in $pods; do
    [ "$pod" = "$POD_NAME" ] && continue
    primary="$(timeout 3 "$3" -h "$pod.$service" -p 26379 \
        sentinel get-master-addr-by-name lmcache 2>/dev/null | head -n 1)" || primary=
    case "$primary" in
        "$service"-*) break ;;
        *) primary= ;; # an error's text, or nothing
    esac
done
primary="${primary:-$service-0.$service}"

if [ "$1" = sentinel ]; then
    password="$(sed 's/[\\"]/\\&/g' /var/run/secrets/lmcache-remote/password)"
    # A sentinel writes into its configuration, so that it cannot be the ConfigMap's.
    cat >/data/sentinel.conf <<EOF
port 26379
dir /data
# It has no password; what it tells is where the primary is.
protected-mode no
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $own
sentinel monitor lmcache $primary 6379 2
sentinel auth-pass lmcache "$password"
sentinel down-after-milliseconds lmcache 5000
sentinel failover-timeout lmcache 30000
sentinel parallel-syncs lmcache 1
EOF
    exec "$2" /data/sentinel.conf --sentinel
fi

{
    echo "replica-announce-ip $own"
    # A replica that has just been a primary throws its data away.
    [ "$primary" = "$own" ] || echo "replicaof $primary 6379"
} >/run/lmcache-remote/replication.conf
exec sh /etc/lmcache-remote/start.sh "$2" /run/lmcache-remote/replication.conf
