#!/bin/sh
# docker-entrypoint.sh [mariadbd] [OPTION...]: makes the data folder when it is empty, then runs the server, as user mysql.
# MARIADB_ROOT_PASSWORD or MARIADB_RANDOM_ROOT_PASSWORD (then nobody can be root), MARIADB_DATABASE, MARIADB_USER, MARIADB_PASSWORD, each also as NAME_FILE, or with MYSQL_ for
# MARIADB_. A node that joins a Galera cluster takes users and data from the cluster.
set -eu
case ${1:-} in
"" | -*) set -- mariadbd "$@" ;;
mariadbd | mysqld) ;;
*) exec "$@" ;;
esac
data=/var/lib/mysql
run=/run/mysqld

# value NAME: the variable's value or the content of the file that NAME_FILE names.
value() {
  eval "v=\${MARIADB_$1:-\${MYSQL_$1:-}} f=\${MARIADB_$1_FILE:-\${MYSQL_$1_FILE:-}}"
  if [ -n "$f" ]; then cat "$f"; else printf '%s' "$v"; fi
}
# quoted TEXT: TEXT inside the quotes of a string.
quoted() { printf '%s' "$1" | sed -e 's/\\/\\\\/g' -e "s/'/''/g"; }

if [ "$(id -u)" = 0 ]; then
  mkdir -p $data $run
  chown mysql:mysql $data $run
  # The server runs it at every start; it changes nothing the second time.
  root=$(quoted "$(value ROOT_PASSWORD)") password=$(quoted "$(value PASSWORD)")
  user=$(quoted "$(value USER)") db=$(value DATABASE)
  if [ -z "$root" ] && [ ! -d $data/mysql ] && [ -n "$(value RANDOM_ROOT_PASSWORD)" ]; then
    root=$(od -An -N16 -tx1 /dev/urandom | tr -d ' ')
  fi
  [ -n "$root" ] || [ -d $data/mysql ] || { echo "entrypoint: set MARIADB_ROOT_PASSWORD_FILE to a file with the password of root, or MARIADB_RANDOM_ROOT_PASSWORD to have none" >&2; exit 1; }
  (
    umask 077
    {
      [ -z "$root" ] || echo "ALTER USER 'root'@'localhost' IDENTIFIED BY '$root';"
      [ -z "$db" ] || echo "CREATE DATABASE IF NOT EXISTS \`$db\` CHARACTER SET utf8mb4;"
      if [ -n "$user" ]; then
        echo "CREATE USER IF NOT EXISTS '$user'@'%' IDENTIFIED BY '$password';"
        [ -z "$db" ] || echo "GRANT ALL ON \`$db\`.* TO '$user'@'%';"
      fi
    } >$run/init.sql
  )
  chown mysql:mysql $run/init.sql
  unset MARIADB_ROOT_PASSWORD MARIADB_PASSWORD MYSQL_ROOT_PASSWORD MYSQL_PASSWORD
  exec setpriv --reuid=mysql --regid=mysql --init-groups "$0" "$@"
fi

if [ ! -d $data/mysql ]; then
  trap 'rm -rf $data/*' EXIT
  mariadb-install-db --datadir=$data --auth-root-authentication-method=normal --skip-test-db --skip-log-bin >/dev/null
  trap - EXIT
fi
case " $* " in
*wsrep[-_]new[-_]cluster*) set -- "$@" --init-file=$run/init.sql ;;
*wsrep[-_]cluster[-_]address*) ;;
*) set -- "$@" --init-file=$run/init.sql ;;
esac
exec "$@"
