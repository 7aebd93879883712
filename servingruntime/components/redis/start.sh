#!/bin/sh
# start.sh SERVER [FILE]: starts the server with what redis.conf cannot hold: the password, how much
# memory there is, FILE, and whatever other *.conf lies in the ConfigMap.
set -eu
umask 077
config=/etc/lmcache-remote
local=/run/lmcache-remote/local.conf

# Quoted, as it may hold any character that a line can.
password="$(sed 's/[\\"]/\\&/g' /var/run/secrets/lmcache-remote/password)"
if [ -z "$password" ]; then
    echo "The key password of the Secret lmcache-remote is empty." >&2
    exit 1
fi
{
    printf 'requirepass "%s"\n' "$password"
    printf 'masterauth "%s"\n' "$password"
    # The rest is for the connections' buffers and for fragmentation.
    printf 'maxmemory %s\n' "$((MEMORY_LIMIT * 4 / 5))"
    for file in "$config"/*.conf "${2:-$config/redis.conf}"; do
        [ "$file" = "$config/redis.conf" ] || printf 'include %s\n' "$file"
    done
} >"$local"

exec "$1" "$config/redis.conf"
