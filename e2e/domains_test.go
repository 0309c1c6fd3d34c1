package e2e

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

// named is what became of a request over a TLS connection whose client names host: nil, or why there was no answer in time.
// The request comes a second after the handshake.
func named(t *testing.T, link *loadgen.Link, host string) error {
	t.Helper()
	d := net.Dialer{Timeout: 2 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(link.Clients[0], 0))}
	var conn net.Conn
	err := link.Gen.Do(func() (err error) {
		conn, err = d.Dial("tcp", netip.AddrPortFrom(loadgen.VictimAddr, 443).String())
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(4 * time.Second))
	c := tls.Client(conn, &tls.Config{ServerName: host, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}) //nolint:gosec // the link's own server has another name
	if err := c.Handshake(); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	time.Sleep(time.Second)
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// TestFullDomainLists: a list of domains by the command line, over separate processes, NATS with mutual TLS and the real
// driver. Flows that name a listed host stop, flows of the same client to the same address and port by another name do not.
func TestFullDomainLists(t *testing.T) {
	m := newMesh(t)
	c := m.gateway.Client(t, "operator")
	if err := named(t, m.link, "www.bad.example"); err != nil {
		t.Fatalf("without a list: %v", err)
	}
	file := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(file, []byte("# a hosts file\n127.0.0.1 localhost\n0.0.0.0 bad.example worse.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	command := func(args ...string) string {
		t.Helper()
		out, err := rig.Output(t.Context(), rig.Binary(t, "tidegate"), append(args, m.gateway.Flags(t, "operator")...)...)
		if err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
		return string(out)
	}
	if out := command("lists", "put", "names", "--kind", "domain", "--action", "drop", "--file", file); !strings.Contains(out, "list names: drop, 2 domains") || !strings.Contains(out, "active") {
		t.Fatalf("put: %s", out)
	}
	stopped := func(host string) {
		t.Helper()
		if err := named(t, m.link, host); !isTimeout(err) {
			t.Errorf("%s: %v, want no answer", host, err)
		}
	}
	passes := func(host string) {
		t.Helper()
		if err := named(t, m.link, host); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	stopped("www.bad.example")
	passes("bad.example.org")
	stopped("worse.example")
	passes(loadgen.HostName)
	l, err := c.List(t.Context(), "names")
	if err != nil || l.Kind != "domain" || l.Domains != 2 || len(l.Nodes) != 1 || l.Nodes[0].State != "active" || l.Nodes[0].Flows != 2 || l.Nodes[0].Ruled != 2 {
		t.Errorf("the list: %+v, %v", l, err)
	}
	made := flowRules(t, c, "www.bad.example")
	if len(made) != 2 || made[0].List != "names" || made[0].Origin != "detector" || made[0].Lease != "3m0s" {
		t.Fatalf("rules %+v", made)
	}
	for _, id := range []string{made[0].ID, made[1].ID} {
		if err := rig.Eventually(20*time.Second, func() error { // the verdict comes by way of the database
			out := command("rules", "explain", id)
			for _, want := range []string{"Classify made it for one flow, which names www.bad.example, because of the list names.", "list names has bad.example"} {
				if !strings.Contains(out, want) {
					return fmt.Errorf("%q is missing: %s", want, out)
				}
			}
			if !strings.Contains(out, "Stops the flow between") {
				return fmt.Errorf("no verdict: %s", out)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}

	if _, err := c.PutList(t.Context(), "good", api.ListInput{Kind: "domain", Action: "allow"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PutListEntries(t.Context(), "good", []byte("fine.bad.example\n")); err != nil {
		t.Fatal(err)
	}
	domainsInForce(t, c, "good")
	passes("fine.bad.example")
	stopped("other.bad.example")
	for _, name := range []string{"good", "names"} {
		if err := c.DeleteList(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := rig.Eventually(20*time.Second, func() error {
		if rest := flowRules(t, c, ""); len(rest) != 0 {
			return fmt.Errorf("rules without a list: %+v", rest)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	passes("www.bad.example")

	out := command("rules", "add", "--action", "drop", "--host", "*.Blocked.Example", "--proto", "tcp", "--dport", "443", "--for", "10m")
	if !strings.Contains(out, "drop host blocked.example proto 6 dport 443: active") {
		t.Errorf("a rule by host: %s", out)
	}
	if err := rig.Eventually(20*time.Second, func() error { // classify learns of it by its watch
		if err := named(t, m.link, "a.blocked.example"); !isTimeout(err) {
			return fmt.Errorf("a.blocked.example: %w", errors.Join(err, errors.New("it is not stopped")))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	passes("unblocked.example")
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// flowRules are the living rules that were made for flows of a host, or of any host.
func flowRules(t *testing.T, c *client.Client, host string) (out []api.Rule) {
	t.Helper()
	for r, err := range c.Rules(t.Context(), client.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Host != "" && (host == "" || r.Host == host) && slices.Contains([]string{"active", "pending"}, r.State) {
			out = append(out, r)
		}
	}
	return out
}

// domainsInForce waits until the only classifier has a list.
func domainsInForce(t *testing.T, c *client.Client, name string) {
	t.Helper()
	if err := rig.Eventually(20*time.Second, func() error {
		l, err := c.List(t.Context(), name)
		if err != nil {
			return err
		}
		if len(l.Nodes) != 1 || l.Nodes[0].State != "active" || l.Nodes[0].Entries != l.Domains || l.Domains == 0 {
			return fmt.Errorf("%+v", l)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
