package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/token"
)

// Gateway is where a gateway listens and who may ask it.
type Gateway struct {
	Addr string
	Keys string // folder of the token key
	ca   string
}

// NewGateway makes a token key in a folder and picks an address; ca is the file of the authority of its certificate,
// which need not be there yet.
func NewGateway(t testing.TB, keys, ca string) *Gateway {
	t.Helper()
	if _, err := token.Init(keys); err != nil {
		t.Fatal(err)
	}
	return &Gateway{Addr: FreeAddr(t), Keys: keys, ca: ca}
}

// URL is its address.
func (g *Gateway) URL() string { return "https://" + g.Addr }

// Credentials are a role's, for longer than a soak takes.
func (g *Gateway) Credentials(t testing.TB, role string) client.Credentials {
	t.Helper()
	ca, err := os.ReadFile(g.ca)
	if err != nil {
		t.Fatal(err)
	}
	return client.Credentials{URL: g.URL(), CA: string(ca), Token: g.Token(t, token.Claims{Role: role, For: 24 * time.Hour})}
}

// Token signs claims; the subject is e2e-ROLE unless they name one.
func (g *Gateway) Token(t testing.TB, c token.Claims) string {
	t.Helper()
	if c.Subject == "" {
		c.Subject = "e2e-" + c.Role
	}
	signed, err := token.Issue(g.Keys, c)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// Client asks as a role.
func (g *Gateway) Client(t testing.TB, role string) *client.Client {
	t.Helper()
	o, err := g.Credentials(t, role).Options()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Flags make the command line ask it as a role.
func (g *Gateway) Flags(t testing.TB, role string) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "credentials.json")
	if err := client.SaveCredentials(file, g.Credentials(t, role)); err != nil {
		t.Fatal(err)
	}
	return []string{"--credentials", file}
}

// WaitReady waits until want services answer through the gateway and are ready.
func (g *Gateway) WaitReady(t testing.TB, want int, limit time.Duration) {
	t.Helper()
	var c *client.Client
	err := Eventually(limit, func() error {
		if _, err := os.Stat(g.ca); err != nil {
			return err // made when it starts
		}
		if c == nil {
			c = g.Client(t, "viewer")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		ready := 0
		var problems []string
		for _, x := range s.Services {
			if x.Ready {
				ready++
			}
			problems = append(problems, x.Problems...)
		}
		for _, m := range s.Missing {
			problems = append(problems, m.Problem)
		}
		if ready < want {
			return fmt.Errorf("%d of %d services ready: %s", ready, want, strings.Join(problems, "; "))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// WaitBalanced waits until the ledger's difference is 0 and returns the status then.
func (g *Gateway) WaitBalanced(t testing.TB, limit time.Duration) api.Status {
	t.Helper()
	return WaitBalanced(t, g.Client(t, "viewer"), limit)
}

// WaitBalanced is the method of the same name for any client.
func WaitBalanced(t testing.TB, c *client.Client, limit time.Duration) api.Status {
	t.Helper()
	var s api.Status
	err := Eventually(limit, func() (err error) {
		if s, err = c.Status(t.Context()); err != nil {
			return err
		}
		switch {
		case len(s.Missing) > 0:
			return fmt.Errorf("missing: %+v", s.Missing)
		case len(s.Ledger.Stages) == 0:
			return errors.New("the ledger is empty")
		case s.Ledger.Difference != 0:
			return fmt.Errorf("the ledger does not balance: %+v", s.Ledger)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
