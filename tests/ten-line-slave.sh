#!/usr/bin/env bash
# A whole slave in ten lines of shell: ten-line-slave.sh HOST PORT ID. It prints what the master tells it.
set -euo pipefail
from="rpicluster/from/$3" session="$RANDOM$RANDOM"
say() { mosquitto_pub -h "$host" -p "$port" -q 1 -t "$from/$1" -m "{\"type\":\"$2\",\"payload\":$3,\"id\":\"$1-1\"}" "${@:4}"; }
state() { printf '{"state":"%s","session":"%s","protocol":1}' "$1" "$session"; }
host=$1 port=$2
mosquitto_sub -h "$host" -p "$port" -i "$3" -k 5 -q 1 -t "rpicluster/to/$3/#" --will-topic "$from/state" --will-retain \
  --will-qos 1 --will-payload "{\"type\":\"state\",\"payload\":$(state offline)}" &
trap 'say state state "$(state offline)" -r; kill $!' EXIT
say state state "$(state online)" -r && say details computer_details "{\"hostname\":\"$(hostname)\"}" -r
while say info info '"computer_details"' && say vitals vitals "{\"uptime\":$SECONDS}"; do sleep 2 & wait $!; done
