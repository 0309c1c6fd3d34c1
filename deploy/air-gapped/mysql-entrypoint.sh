#!/bin/sh
# docker-entrypoint.sh [mariadbd|mysqld] [OPTION...]: makes the data folder when it is empty, then runs the server that the
# image has, as user mysql.
# MYSQL_ROOT_PASSWORD or MYSQL_RANDOM_ROOT_PASSWORD (then nobody can be root), MYSQL_DATABASE, MYSQL_USER, MYSQL_PASSWORD, each also
# as NAME_FILE; with MariaDB MARIADB_ for MYSQL_, too. A node that joins a Galera cluster takes users and data from the cluster.
set -eu
server=mysqld prefix=MYSQL
if command -v mariadbd >/dev/null; then server=mariadbd prefix=MARIADB; fi
case ${1:-} in
"" | -*) set -- $server "$@" ;;
mariadbd | mysqld) ;;
*) exec "$@" ;;
esac
data=/var/lib/mysql
run=/run/mysqld

# value NAME: the variable's value or the content of the file that NAME_FILE names.
value() {
  eval "v=\${${prefix}_$1:-\${MYSQL_$1:-}} f=\${${prefix}_$1_FILE:-\${MYSQL_$1_FILE:-}}"
  if [ -n "$f" ]; then cat "$f"; else printf '%s' "$v"; fi
}
# quoted TEXT: TEXT inside the quotes of a string.
quoted() { printf '%s' "$1" | sed -e 's/\\/\\\\/g' -e "s/'/''/g"; }
# line TEXT: TEXT as it is, where sh's echo changes backslashes.
line() { printf '%s\n' "$1"; }

if [ "$(id -u)" = 0 ]; then
  mkdir -p $data $run
  chown mysql:mysql $data $run
  # The server runs it at every start; it changes nothing the second time.
  root=$(quoted "$(value ROOT_PASSWORD)") password=$(quoted "$(value PASSWORD)")
  user=$(quoted "$(value USER)") db=$(value DATABASE)
  if [ -z "$root" ] && [ ! -d $data/mysql ] && [ -n "$(value RANDOM_ROOT_PASSWORD)" ]; then
    root=$(od -An -N16 -tx1 /dev/urandom | tr -d ' ')
  fi
  [ -n "$root" ] || [ -d $data/mysql ] || { echo "entrypoint: set ${prefix}_ROOT_PASSWORD_FILE to a file with the password of root, or ${prefix}_RANDOM_ROOT_PASSWORD to have none" >&2; exit 1; }
  (
    umask 077
    {
      [ -z "$root" ] || line "ALTER USER 'root'@'localhost' IDENTIFIED BY '$root';"
      [ -z "$db" ] || line "CREATE DATABASE IF NOT EXISTS \`$db\` CHARACTER SET utf8mb4;"
      if [ -n "$user" ]; then
        line "CREATE USER IF NOT EXISTS '$user'@'%' IDENTIFIED BY '$password';"
        [ -z "$db" ] || line "GRANT ALL ON \`$db\`.* TO '$user'@'%';"
      fi
    } >$run/init.sql
  )
  chown mysql:mysql $run/init.sql
  unset MARIADB_ROOT_PASSWORD MARIADB_PASSWORD MYSQL_ROOT_PASSWORD MYSQL_PASSWORD
  exec setpriv --reuid=mysql --regid=mysql --init-groups "$0" "$@"
fi

if [ ! -d $data/mysql ]; then
  trap 'rm -rf $data/*' EXIT
  if [ $server = mariadbd ]; then
    mariadb-install-db --datadir=$data --auth-root-authentication-method=normal --skip-test-db --skip-log-bin >/dev/null
  else
    mysqld --initialize-insecure --datadir=$data
  fi
  trap - EXIT
fi
case " $* " in
*wsrep[-_]new[-_]cluster*) ;;
*wsrep[-_]cluster[-_]address*) exec "$@" ;; # it joins
esac
exec "$@" --init-file=$run/init.sql
