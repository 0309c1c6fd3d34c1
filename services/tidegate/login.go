package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
)

// maxToken is above what a gateway takes in a header.
const maxToken = 32 << 10

type loginCmd struct {
	remote `embed:""`
}

// Run stores credentials that the gateway has accepted. A second log-in at the same gateway need not name it nor its
// authority again.
func (c *loginCmd) Run(t *terminal) error {
	file, err := c.stored()
	if err != nil {
		return err
	}
	saved, err := client.LoadCredentials(file)
	if err != nil { // none, or one that is replaced now
		saved = client.Credentials{URL: defaultGateway}
	}
	next := client.Credentials{URL: strings.TrimSuffix(c.Gateway, "/")}
	if c.Gateway == "" || sameGateway(c.Gateway, saved.URL) {
		next.URL, next.CA = saved.URL, saved.CA
	}
	if c.CA != "" {
		b, err := os.ReadFile(c.CA)
		if err != nil {
			return config.Usagef("--ca: %w", err)
		}
		next.CA = string(b)
	}
	if next.Token, err = c.token(t, next.URL); err != nil {
		return err
	}
	o, err := next.Options()
	if err != nil {
		return config.Usagef("%w", err)
	}
	return asking(o, func(ctx context.Context, g *client.Client) error {
		me, err := g.Me(ctx)
		if err != nil {
			return err
		}
		if err := client.SaveCredentials(file, next); err != nil {
			return err
		}
		_, err = fmt.Fprintf(t.out, "logged in at %s as %s (%s) until %s\n", g.URL(), plain(me.Subject), me.Role, when(me.ExpiresNs))
		return err
	})
}

// token is the flag's, or the first line of the input: a token in a command line is seen by every process.
func (c *loginCmd) token(t *terminal, gateway string) (string, error) {
	if c.Token != "" && c.Token != "-" {
		return c.Token, nil
	}
	var line string
	if fd := int(t.in.Fd()); term.IsTerminal(fd) {
		_, _ = fmt.Fprintf(t.err, "token for %s: ", gateway)
		var err error
		line, err = readHidden(fd)
		_, _ = fmt.Fprintln(t.err)
		if err != nil {
			return "", err
		}
	} else {
		var err error
		if line, err = bufio.NewReader(io.LimitReader(t.in, maxToken)).ReadString('\n'); err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("read the token: %w", err)
		}
	}
	if line = strings.TrimSpace(line); line == "" {
		return "", config.Usagef("no token: give --token, or write it to the standard input (tidegate token issue makes one)")
	}
	return line, nil
}

// readHidden reads a line that the terminal does not show. A signal meanwhile gives the terminal back as it was: not every
// shell mends one that stays silent.
func readHidden(fd int) (string, error) {
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	ctx, stop := lifecycle.SignalContext()
	defer stop()
	type answer struct {
		line []byte
		err  error
	}
	read := make(chan answer, 1)
	go func() { // it cannot be interrupted: the end of the process ends it
		line, err := term.ReadPassword(fd)
		read <- answer{line, err}
	}()
	select {
	case a := <-read:
		if a.err != nil {
			return "", fmt.Errorf("read the token: %w", a.err)
		}
		return string(a.line), nil
	case <-ctx.Done():
		return "", errors.Join(errors.New("interrupted"), term.Restore(fd, before))
	}
}

type logoutCmd struct {
	Credentials string `help:"the file that tidegate login wrote" placeholder:"FILE" type:"path"`
}

// Run removes the file. The token itself stays good until it expires.
func (c *logoutCmd) Run(t *terminal) error {
	file, err := (&remote{Credentials: c.Credentials}).stored()
	if err != nil {
		return err
	}
	switch err := os.Remove(file); {
	case errors.Is(err, fs.ErrNotExist):
		_, _ = fmt.Fprintln(t.out, "not logged in")
	case err != nil:
		return fmt.Errorf("forget the credentials: %w", err)
	default:
		_, _ = fmt.Fprintln(t.out, "removed", file)
	}
	return nil
}

type whoamiCmd struct {
	remote `embed:""`
	output `embed:""`
}

func (c *whoamiCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		me, err := g.Me(ctx)
		if err != nil {
			return err
		}
		return one(c.output, t.out, me, func(w io.Writer, me api.Identity) error {
			_, err := fmt.Fprintf(w, "%s (%s) at %s until %s\n", plain(me.Subject), me.Role, g.URL(), when(me.ExpiresNs))
			return err
		})
	})
}
