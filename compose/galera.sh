#!/bin/bash
# Starts a node of the cluster: of the image's own entrypoint, with Galera switched on.
set -euo pipefail
state=/var/lib/mysql/grastate.dat
new=()
# The first node begins the cluster at its first start. After all nodes were stopped, the one that stopped last
# begins it again; after a crash of all, they find each other by themselves (pc.recovery).
if [ ! -e "$state" ]; then
  if [ "${GALERA_FIRST:-}" = yes ]; then
    new=(--wsrep-new-cluster)
    # If only its volume was lost, the others have the cluster and it joins them: alone it would begin an empty second one.
    for node in database-2 database-3; do
      ! timeout 2 bash -c ": </dev/tcp/$node/4567" 2>/dev/null || new=()
    done
  fi
elif grep -q '^safe_to_bootstrap: 1' "$state"; then
  new=(--wsrep-new-cluster)
fi
exec docker-entrypoint.sh mariadbd \
  --binlog-format=ROW --default-storage-engine=InnoDB --innodb-autoinc-lock-mode=2 --innodb-flush-log-at-trx-commit=2 \
  --wsrep-on=ON --wsrep-provider=/usr/lib/galera/libgalera_smm.so --wsrep-cluster-name=tidegate \
  --wsrep-cluster-address=gcomm://database,database-2,database-3 --wsrep-node-address="$(hostname -i | cut -d' ' -f1)" \
  --wsrep-sst-method=rsync "${new[@]}"
