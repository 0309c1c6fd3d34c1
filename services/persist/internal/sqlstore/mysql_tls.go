package sqlstore

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// tlsOptions are PostgreSQL's, for the MySQL family. The files are read for every new connection.
type tlsOptions struct{ mode, root, cert, key string }

func (o tlsOptions) check() error {
	switch o.mode {
	case "", "prefer", "disable", "require":
	case "verify-ca", "verify-full":
		if o.root == "" {
			return fmt.Errorf("sslmode=%s in DATABASE_URL needs sslrootcert, the PEM file of the authority that signed the server's certificate", o.mode)
		}
	default:
		return fmt.Errorf("sslmode=%s in DATABASE_URL is not known: use disable, prefer, require, verify-ca or verify-full", o.mode)
	}
	if (o.cert == "") != (o.key == "") {
		return errors.New("sslcert and sslkey in DATABASE_URL belong together: set both or none")
	}
	return nil
}

// config is for one connection to host; nil: no TLS. fallback says that a server without TLS will do.
func (o tlsOptions) config(host string) (c *tls.Config, fallback bool, err error) {
	if o.mode == "disable" {
		return nil, false, nil
	}
	c = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if o.cert != "" {
		pair, err := tls.LoadX509KeyPair(o.cert, o.key)
		if err != nil {
			return nil, false, fmt.Errorf("client certificate for the database: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if o.root == "" { // the modes that verify have one
		c.InsecureSkipVerify = true //nolint:gosec // what sslmode=require means
		return c, o.mode == "" || o.mode == "prefer", nil
	}
	pem, err := os.ReadFile(o.root)
	if err != nil {
		return nil, false, fmt.Errorf("authority of the database's certificate (sslrootcert): %w", err)
	}
	c.RootCAs = x509.NewCertPool()
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, false, fmt.Errorf("authority of the database's certificate (sslrootcert): %s has no PEM certificate", o.root)
	}
	if o.mode != "verify-full" { // the chain is checked, the host's name is not
		c.InsecureSkipVerify = true //nolint:gosec // VerifyConnection does it
		roots := c.RootCAs
		c.VerifyConnection = func(s tls.ConnectionState) error {
			between := x509.NewCertPool()
			for _, x := range s.PeerCertificates[1:] {
				between.AddCert(x)
			}
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between})
			return err
		}
	}
	return c, false, nil
}
