package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
)

const (
	// localFile is written by tidegate run and demo, for who may read their files.
	localFile      = "/run/tidegate/local.json"
	defaultGateway = "https://localhost:8080"
)

// remote is how commands reach the gateway. What the flags leave open is taken from the first file of credentials that
// is about the same gateway.
type remote struct {
	Gateway     string `help:"the gateway's address, https://HOST:PORT" placeholder:"URL"`
	Token       string `help:"the token to ask with"`
	CA          string `name:"ca" help:"PEM file of the authority of the gateway's certificate" placeholder:"FILE" type:"path"`
	Credentials string `help:"file with all three (default: what tidegate login stored, else what tidegate run left on this machine)" placeholder:"FILE" type:"path"`
}

// stored is where tidegate login keeps credentials.
func (r *remote) stored() (string, error) {
	if r.Credentials != "" {
		return r.Credentials, nil
	}
	dir, err := os.UserConfigDir() // $XDG_CONFIG_HOME, else .config of the home
	if err != nil {
		return "", config.Usagef("the credentials' folder is not known (%w): name a file with --credentials", err)
	}
	return filepath.Join(dir, "tidegate", "credentials.json"), nil
}

// files are looked at in this order.
func (r *remote) files() []string {
	var files []string
	if f, err := r.stored(); err == nil {
		files = append(files, f)
	}
	if r.Credentials == "" {
		files = append(files, localFile)
	}
	return files
}

// find completes the flags from files. A token goes only to the gateway that it is for.
func (r *remote) find(files []string) (client.Options, error) {
	c, without := r.pick(files)
	if r.Gateway != "" {
		c.URL = r.Gateway
	}
	if r.Token != "" {
		c.Token = r.Token
	}
	if c.URL == "" || c.Token == "" {
		return client.Options{}, config.Usagef("no gateway or no token for it: log in with `tidegate login --gateway URL`, or give --gateway and --token (%s)", strings.Join(without, "; "))
	}
	if r.CA != "" {
		return client.Options{URL: c.URL, Token: c.Token, CAFile: r.CA}, nil
	}
	o, err := c.Options()
	if err != nil {
		return o, config.Usagef("%w", err)
	}
	return o, nil
}

// pick reads the first file that is about the gateway; without says what kept the ones before it from being used.
func (r *remote) pick(files []string) (c client.Credentials, without []string) {
	for _, file := range files {
		c, err := client.LoadCredentials(file)
		switch {
		case err != nil:
			without = append(without, err.Error())
		case r.Gateway != "" && !sameGateway(r.Gateway, c.URL):
			without = append(without, file+" is for "+c.URL)
		default:
			return c, without
		}
	}
	return client.Credentials{}, without
}

func sameGateway(a, b string) bool {
	return strings.EqualFold(strings.TrimSuffix(a, "/"), strings.TrimSuffix(b, "/"))
}

// ask runs f with a client, until it returns or a signal comes.
func (r *remote) ask(f func(ctx context.Context, c *client.Client) error) error {
	o, err := r.find(r.files())
	if err != nil {
		return err
	}
	return asking(o, f)
}

func asking(o client.Options, f func(ctx context.Context, c *client.Client) error) error {
	c, err := client.New(o)
	if err != nil {
		return config.Usagef("%w", err)
	}
	defer c.Close()
	ctx, stop := lifecycle.SignalContext()
	defer stop()
	err = f(ctx, c)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return errors.New("interrupted")
	}
	return err
}

// span is the time that a read looks at.
type span struct {
	Since time.Duration `help:"how far back" default:"${since}"`
	From  time.Time     `help:"from this time on, as 2026-01-31T08:00:00Z; wins over --since" placeholder:"TIME"`
	To    time.Time     `help:"until this time (default: now)" placeholder:"TIME"`
}

// query is the span as a query from now.
func (s span) query() (client.Query, error) {
	q := client.Query{From: s.From, To: s.To}
	if s.From.IsZero() {
		if s.Since <= 0 {
			return q, config.Usagef("--since %s: give a time above 0, as 30m or 24h", s.Since)
		}
		q.From = time.Now().Add(-s.Since)
	}
	if !q.To.IsZero() && !q.From.Before(q.To) {
		return q, config.Usagef("the time from %s to %s is empty: --to must be later", q.From.Format(time.RFC3339), q.To.Format(time.RFC3339))
	}
	return q, nil
}

// limited is a listing's length.
type limited struct {
	Limit uint32 `help:"at most so many; 0 = all" default:"${limit}"`
}
