#!/bin/sh
# Make the secrets that compose.yaml reads, once: `sh deploy/secrets.sh`. Keeps those there are.
# Files are readable by all inside a folder only you may enter: containers read them by mount.
set -eu
umask 022
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets
draw() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
keep() {
  [ -s "secrets/$1" ] || printf '%s' "$2" >"secrets/$1"
  chmod 444 "secrets/$1"
}
keep bulk_secret_key "$(draw)"
keep metrics_token "$(draw)"
keep grafana_password "$(draw)"
keep postgres_password "$(draw)"
keep valkey_password "$(draw)"
keep database_url "postgresql://drumbeat:$(cat secrets/postgres_password)@postgres:5432/drumbeat"
keep redis_url "redis://:$(cat secrets/valkey_password)@valkey:6379/0"
keep valkey_acl "$(sed -n "s/PASSWORD/$(cat secrets/valkey_password)/; /^user /p" users.acl)"
keep whatsapp_verify_token "$(draw)"
for each in whatsapp_access_token whatsapp_app_secret; do
  [ -e "secrets/$each" ] || : >"secrets/$each"
  chmod 444 "secrets/$each"
done
echo "deploy/secrets: ready; Meta's token and app secret go into whatsapp_access_token and whatsapp_app_secret"
