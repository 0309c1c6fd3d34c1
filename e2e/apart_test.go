package e2e

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/dbtest"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/token"
)

// mesh is all services as processes of their own, with a real NATS server and a real database, all but the
// database over mutual TLS.
type mesh struct {
	link                                            *loadgen.Link
	ingest, classify, enforce, persist, gatewayProc *rig.Process
	nats                                            *rig.Process
	natsURL, certs                                  string
	database                                        *rig.Database
	gateway                                         *rig.Gateway
}

func newMesh(t *testing.T) *mesh {
	t.Helper()
	return newMeshOn(t, dbtest.PostgreSQL)
}

// newMeshOn has a database of the kind; the services get more environment.
func newMeshOn(t *testing.T, kind string, more ...string) *mesh {
	t.Helper()
	rig.NeedRoot(t)
	m := &mesh{link: rig.Link(t, loadgen.LinkOptions{Prefix: "tgmesh"})}
	m.certs = rig.Certs(t)
	m.nats, m.natsURL = rig.NATS(t, m.certs)
	m.database = rig.NewDatabase(t, kind)
	env := append(m.database.Env(), "TIDEGATE_TLS_DIR="+m.certs, "NATS_URL="+m.natsURL)
	env = append(env, more...)
	var services []string // the gateway's flags that name them
	start := func(name string, args ...string) (*rig.Process, string) {
		addr := rig.FreeAddr(t)
		services = append(services, "--"+name, addr)
		args = append(args, "--listen", addr, "--metrics-listen", rig.FreeAddr(t))
		return rig.Start(t, rig.Binary(t, "tidegate-"+name), env, args...), addr
	}
	ports := []string{"--iface", m.link.PortA, "--iface", m.link.PortB, "--bpffs", m.link.BPFFS}
	var classify string
	m.persist, _ = start("persist")
	m.enforce, _ = start("enforce", append(ports, "--enforce", "--node", "e2e")...)
	m.classify, classify = start("classify", "--protected", loadgen.VictimAddr.String(), "--protected", tracedTargets.String())
	m.ingest, _ = start("ingest", append(ports, "--mode", "inline", "--sensor", "e2e", "--classify", classify)...)
	m.gateway = rig.NewGateway(t, m.certs, pki.FilesOf(m.certs, pki.Gateway).CA)
	m.gatewayProc = rig.Start(t, rig.Binary(t, "tidegate-gateway"), env, append(services, "--listen", m.gateway.Addr,
		"--metrics-listen", rig.FreeAddr(t), "--jwks-file", filepath.Join(m.certs, token.JWKSFile))...)
	m.gateway.WaitReady(t, 4, 60*time.Second)
	return m
}

func (m *mesh) processes() map[string]*rig.Process {
	return map[string]*rig.Process{"ingest": m.ingest, "classify": m.classify, "enforce": m.enforce, "persist": m.persist}
}

func (m *mesh) open(t *testing.T) *sql.DB {
	t.Helper()
	return m.database.Open(t)
}

func count(t *testing.T, db *sql.DB, query string, args ...any) int {
	t.Helper()
	var n int
	if err := db.QueryRow(query, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

// background runs the benign client until the returned stop is called.
func background(client *loadgen.Client) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Add(1)
	go func() { defer wg.Done(); _ = client.Run(ctx) }()
	return func() { cancel(); wg.Wait() }
}

// TestFullServicesApart: the whole path over processes, NATS and PostgreSQL; the victim counts.
func TestFullServicesApart(t *testing.T) {
	m := newMesh(t)
	db := m.open(t)
	client := m.link.Client(60, 7)
	stop := background(client)
	time.Sleep(3 * time.Second)
	for _, kind := range []string{loadgen.SYNFlood, loadgen.AmpDNS, loadgen.PortScan} {
		stopsAttack(t, m.link, client, kind)
		if n := count(t, db, "SELECT count(*) FROM attacks WHERE type = $1", kind); n == 0 {
			t.Errorf("no row of the %s", kind)
		}
	}
	// By now the node knows what is good here: a rule that would stop all of it is refused, by its name.
	in := api.RuleInput{Action: "drop", Match: api.Match{Src: loadgen.BenignPrefix.String()}, For: "1m"}
	if _, err := m.gateway.Client(t, "operator").AddRule(t.Context(), in); problemOf(t, err).Reason != "good_traffic" {
		t.Errorf("a rule that would stop all good traffic: %v", err)
	}
	stop()
	s := m.gateway.WaitBalanced(t, 15*time.Second)
	if len(s.Ledger.Stages) < 7 {
		t.Errorf("the ledger lacks stages: %+v", s.Ledger)
	}
	// At its end ingest exports the flows that were still open, as the DNS queries are.
	if err := m.ingest.Stop(15 * time.Second); err != nil {
		t.Errorf("ingest ended with %v", err)
	}
	for _, q := range []string{
		"SELECT count(*) FROM flows WHERE app = 'tls' AND host = '" + loadgen.HostName + "'",
		"SELECT count(*) FROM flows WHERE app = 'dns'", "SELECT count(*) FROM flows WHERE app = 'http'",
		"SELECT count(*) FROM verdicts", "SELECT count(*) FROM enforcements",
	} {
		err := rig.Eventually(10*time.Second, func() error {
			if count(t, db, q) == 0 {
				return fmt.Errorf("%s: no row", q)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}
