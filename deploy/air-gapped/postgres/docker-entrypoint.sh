#!/bin/sh
# docker-entrypoint.sh [postgres] [OPTION...]: makes the cluster in PGDATA when there is none, then runs the server, as user
# postgres. POSTGRES_USER (postgres), POSTGRES_DB (the user's name), POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE.
set -eu
case ${1:-} in
"" | -*) set -- postgres "$@" ;;
postgres) ;;
*) exec "$@" ;;
esac
if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
  POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
  unset POSTGRES_PASSWORD_FILE
  export POSTGRES_PASSWORD
fi
if [ "$(id -u)" = 0 ]; then
  mkdir -p "$PGDATA" /var/run/postgresql
  chown postgres:postgres "$PGDATA" /var/run/postgresql
  chmod 0700 "$PGDATA"
  exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  user=${POSTGRES_USER:-postgres}
  db=${POSTGRES_DB:-$user}
  [ -n "${POSTGRES_PASSWORD:-}" ] || { echo "entrypoint: set POSTGRES_PASSWORD_FILE to a file with the password of user $user" >&2; exit 1; }
  # What is only half made must not look like a cluster at the next start.
  trap 'rm -rf "$PGDATA"/*' EXIT
  password=$(mktemp)
  printf '%s\n' "$POSTGRES_PASSWORD" >"$password"
  initdb --username="$user" --pwfile="$password" --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8
  rm -f "$password"
  echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
  [ "$db" = postgres ] || printf 'CREATE DATABASE "%s"\n' "$db" | postgres --single -D "$PGDATA" postgres >/dev/null
  trap - EXIT
fi
unset POSTGRES_PASSWORD
exec "$@"
