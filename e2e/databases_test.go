package e2e

import (
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/dbtest"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

// TestDatabases: on each database the mesh, as processes, drops an attack, and what it stored is in the database's own
// tables and answered over REST. About 25 seconds a database, Galera 40.
func TestDatabases(t *testing.T) {
	if testing.Short() {
		t.Skip("part of the full tests (make test-full)")
	}
	names := map[string]string{dbtest.PostgreSQL: "PostgreSQL", dbtest.MySQL: "MySQL", dbtest.MariaDB: "MariaDB", dbtest.Galera: "Galera", rig.SQLite: "SQLite"}
	for _, kind := range rig.Databases {
		t.Run(kind, func(t *testing.T) {
			m := newMeshOn(t, kind)
			benign := m.link.Client(60, 7)
			stop := background(benign)
			defer stop()
			time.Sleep(3 * time.Second)
			stopsAttack(t, m.link, benign, loadgen.SYNFlood)
			stop()
			c := m.gateway.Client(t, "viewer")
			stored(t, c, names[kind])

			db := m.open(t)
			if n := count(t, db, "SELECT count(*) FROM verdicts WHERE type = 'syn_flood' AND trace_id <> ''"); n == 0 {
				t.Error("no verdict of the attack in the database")
			}
			if n := count(t, db, "SELECT count(*) FROM enforcements"); n == 0 {
				t.Error("no enforcement event in the database")
			}
			// REST answers the row that the database has.
			var id, target string
			if err := db.QueryRow("SELECT id, target FROM attacks WHERE type = 'syn_flood'").Scan(&id, &target); err != nil {
				t.Fatal(err)
			}
			if a, err := c.Attack(t.Context(), id); err != nil || a.Target != target || a.Type != loadgen.SYNFlood {
				t.Errorf("attack %s on %s over REST: %+v, %v", id, target, a.Attack, err)
			}
			ids := map[string]bool{}
			rows, err := db.Query("SELECT id FROM flows WHERE app = 'tls' ORDER BY ts DESC LIMIT 20")
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			for rows.Next() {
				var id string
				if err := rows.Scan(&id); err != nil {
					t.Fatal(err)
				}
				ids[id] = true
			}
			if err := rows.Err(); err != nil {
				t.Fatal(err)
			}
			want := len(ids)
			for f, err := range c.Flows(t.Context(), client.Query{App: "tls"}) {
				if err != nil {
					t.Fatal(err)
				}
				delete(ids, f.ID)
			}
			if want == 0 || len(ids) > 0 {
				t.Errorf("of %d TLS flows in the database REST does not answer %d", want, len(ids))
			}
		})
	}
}
