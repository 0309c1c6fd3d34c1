package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/token"
)

const defaultKeys = "/etc/tidegate"

type tokenCmd struct {
	Init  tokenInitCmd  `cmd:"" help:"make the key that signs tokens, and the key set that gateways read"`
	Issue tokenIssueCmd `cmd:"" help:"print a signed token"`
	Show  tokenShowCmd  `cmd:"" help:"print the token that commands ask with, for a browser"`
}

type tokenInitCmd struct {
	Dir string `help:"folder of key and key set" default:"/etc/tidegate" type:"path" placeholder:"DIR"`
}

// Run keeps what is there.
func (c *tokenInitCmd) Run(t *terminal) error {
	id, err := token.Init(c.Dir)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(t.out, "key %s in %s (stays here), key set %s (for gateways, --jwks-file)\n", id, filepath.Join(c.Dir, token.KeyFile), filepath.Join(c.Dir, token.JWKSFile))
	return err
}

type tokenIssueCmd struct {
	Dir      string        `help:"folder of the key (default: /etc/tidegate, else where tidegate run made one: /var/lib/tidegate)" type:"path" placeholder:"DIR"`
	Subject  string        `help:"who will use it; shown in the audit log" required:"" placeholder:"NAME"`
	Role     string        `help:"viewer (reads), operator (also rules and panic) or admin (also the audit log)" enum:"viewer,operator,admin" required:""`
	For      time.Duration `help:"how long it is good, 1s to 8760h" default:"12h"`
	Issuer   string        `help:"what the gateway expects as --token-issuer" default:"tidegate"`
	Audience string        `help:"what the gateway expects as --token-audience" default:"tidegate-gateway"`
}

// Validate is called by the flag parser.
func (c *tokenIssueCmd) Validate() error {
	if c.For < time.Second || c.For > token.MaxFor {
		return fmt.Errorf("--for %s: use 1s to %s", c.For, token.MaxFor)
	}
	return nil
}

// Run prints the token alone, so that it can be piped into tidegate login.
func (c *tokenIssueCmd) Run(t *terminal) error {
	dir := c.Dir
	if dir == "" {
		dir = keyDir(defaultKeys, defaultData)
	}
	signed, err := token.Issue(dir, token.Claims{Subject: c.Subject, Role: c.Role, For: c.For, Issuer: c.Issuer, Audience: c.Audience})
	if err != nil {
		return config.Usagef("%w", err)
	}
	_, err = fmt.Fprintln(t.out, signed)
	return err
}

// keyDir is the first folder that holds a key, else the first.
func keyDir(dirs ...string) string {
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, token.KeyFile)); err == nil {
			return dir
		}
	}
	return dirs[0]
}

type tokenShowCmd struct {
	remote `embed:""`
}

func (c *tokenShowCmd) Run(t *terminal) error {
	o, err := c.find(c.files())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(t.out, o.Token)
	return err
}
