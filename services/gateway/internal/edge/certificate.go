package edge

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// certificate keeps the pair of files current: they are looked at for each handshake, and read again when one has
// changed. It may be used by several goroutines.
type certificate struct {
	t         *telemetry.Telemetry
	m         *metrics
	cert, key string

	mu     sync.Mutex
	stamps [2]stamp
	failed *[2]stamp // the version that could not be used, files that are missing too: it is tried and logged once
	now    *tls.Certificate
}

// stamp tells one version of a file from another, also one that may be read now.
type stamp struct {
	modified time.Time
	size     int64
	changed  syscall.Timespec // owner and mode too
}

func openCertificate(t *telemetry.Telemetry, m *metrics, cert, key string) (*certificate, error) {
	if cert == "" || key == "" {
		return nil, errors.New("HTTPS needs a certificate and its key: give --https-cert and --https-key, or a --tls-dir made by `tidegate certs`")
	}
	c := &certificate{t: t, m: m, cert: cert, key: key}
	stamps, err := c.look()
	if err != nil {
		return nil, err
	}
	if c.now, err = c.read(); err != nil {
		return nil, err
	}
	c.stamps = stamps
	return c, nil
}

func (c *certificate) look() (s [2]stamp, err error) {
	for i, path := range [...]string{c.cert, c.key} {
		info, err := os.Stat(path)
		if err != nil {
			return s, fmt.Errorf("HTTPS certificate: %w: make it with `tidegate certs` or name another", err)
		}
		s[i] = stamp{modified: info.ModTime(), size: info.Size()}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			s[i].changed = st.Ctim
		}
	}
	return s, nil
}

func (c *certificate) read() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, fmt.Errorf("HTTPS certificate %s with key %s: %w", c.cert, c.key, err)
	}
	c.m.expires.Set(float64(pair.Leaf.NotAfter.Unix()))
	return &pair, nil
}

// get is for tls.Config. While the files do not fit together, as between the writes of a renewal, the former pair
// stays.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stamps, err := c.look()
	switch {
	case err == nil && stamps == c.stamps:
		c.failed = nil
		return c.now, nil
	case c.failed != nil && stamps == *c.failed:
		return c.now, nil
	}
	next := c.now
	if err == nil {
		next, err = c.read()
	}
	if err != nil {
		c.t.CountError("tls_reload")
		c.t.Log.Warn("the HTTPS certificate changed but cannot be used, the former one stays", "error", err)
		c.failed = &stamps
		return c.now, nil
	}
	c.now, c.stamps, c.failed = next, stamps, nil
	c.t.Log.Info("HTTPS certificate reloaded", "cert", c.cert, "expires", next.Leaf.NotAfter)
	return c.now, nil
}

// ready is nil while the certificate is valid.
func (c *certificate) ready() error {
	pair, _ := c.get(nil) // it gives the pair in use, and no error
	switch now := time.Now(); {
	case now.After(pair.Leaf.NotAfter):
		return fmt.Errorf("the HTTPS certificate %s expired at %s: renew it, for a local one with `tidegate certs`", c.cert, pair.Leaf.NotAfter.Format(time.RFC3339))
	case now.Before(pair.Leaf.NotBefore):
		return fmt.Errorf("the HTTPS certificate %s is valid from %s only: check the clock", c.cert, pair.Leaf.NotBefore.Format(time.RFC3339))
	}
	return nil
}
