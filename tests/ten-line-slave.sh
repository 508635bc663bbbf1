#!/usr/bin/env bash
# A whole slave in ten lines of shell: SECRET=… ten-line-slave.sh HOST PORT ID, with the secret that "rpicluster slaves add
# ID" printed. It prints what the master tells it. (A secret among the arguments of a process is for demonstrations only.)
set -euo pipefail
from="rpicluster/from/$3" session="$RANDOM$RANDOM" to=(-h "$1" -p "$2" -u "$3" -P "$SECRET" -q 1)
say() { mosquitto_pub "${to[@]}" -i "$id/$1" -t "$from/$1" -m "{\"type\":\"$2\",\"payload\":$3,\"id\":\"$1-1\"}" "${@:4}"; }
state() { printf '{"state":"%s","session":"%s","protocol":1}' "$1" "$session"; }
id=$3
mosquitto_sub "${to[@]}" -i "$id" -k 5 -t "rpicluster/to/$id/#" --will-topic "$from/state" --will-retain \
  --will-qos 1 --will-payload "{\"type\":\"state\",\"payload\":$(state offline)}" &
trap 'say state state "$(state offline)" -r; kill $!' EXIT
say state state "$(state online)" -r && say details computer_details "{\"hostname\":\"$(hostname)\"}" -r
while say info info '"computer_details"' && say vitals vitals "{\"uptime\":$SECONDS}"; do sleep 2 & wait $!; done
