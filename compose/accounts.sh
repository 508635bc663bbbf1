#!/bin/sh
# Makes the accounts of docker-compose.yml's profile "external", each with a password of its own; those that exist stay.
set -eu
umask 077
touch passwords
for name in "$@"; do
    if [ ! -s "$name.password" ]; then
        password=$(head -c 24 /dev/urandom | base64)
        mosquitto_passwd -b passwords "$name" "$password"
        echo "$password" >"$name.password"
    fi
done
