#!/bin/sh
# docker-entrypoint.sh [mysqld] [OPTION...]: makes the data folder when it is empty, then runs the server, as user mysql.
# MYSQL_ROOT_PASSWORD or MYSQL_RANDOM_ROOT_PASSWORD (then nobody can be root), MYSQL_DATABASE, MYSQL_USER, MYSQL_PASSWORD, each also as NAME_FILE.
set -eu
case ${1:-} in
"" | -*) set -- mysqld "$@" ;;
mysqld) ;;
*) exec "$@" ;;
esac
data=/var/lib/mysql
run=/run/mysqld

# value NAME: the variable's value or the content of the file that NAME_FILE names.
value() {
  eval "v=\${MYSQL_$1:-} f=\${MYSQL_$1_FILE:-}"
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
  [ -n "$root" ] || [ -d $data/mysql ] || { echo "entrypoint: set MYSQL_ROOT_PASSWORD_FILE to a file with the password of root, or MYSQL_RANDOM_ROOT_PASSWORD to have none" >&2; exit 1; }
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
  unset MYSQL_ROOT_PASSWORD MYSQL_PASSWORD
  exec setpriv --reuid=mysql --regid=mysql --init-groups "$0" "$@"
fi

if [ ! -d $data/mysql ]; then
  trap 'rm -rf $data/*' EXIT
  mysqld --initialize-insecure --datadir=$data
  trap - EXIT
fi
exec "$@" --init-file=$run/init.sql
