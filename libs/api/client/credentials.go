package client

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Credentials are what a client needs to reach a gateway, as kept in a file.
type Credentials struct {
	URL   string `json:"url"`
	CA    string `json:"ca,omitempty"` // PEM; empty: the system's authorities
	Token string `json:"token"`
}

// Options are the client's for these credentials.
func (c Credentials) Options() (Options, error) {
	o := Options{URL: c.URL, Token: c.Token}
	if c.CA != "" {
		pool, err := poolOf([]byte(c.CA))
		if err != nil {
			return o, fmt.Errorf("the authority in the credentials: %w", err)
		}
		o.CA = pool
	}
	return o, nil
}

// SaveCredentials writes the file, readable by its owner alone; a reader sees the old ones or the new ones. Its folder
// is made when missing.
func SaveCredentials(path string, c Credentials) (err error) {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the credentials: %w", err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the folder of the credentials: %w", err)
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write the credentials: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = fmt.Errorf("write the credentials: %w", err)
		}
	}()
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// LoadCredentials reads the file. A missing one is fs.ErrNotExist.
func LoadCredentials(path string) (Credentials, error) {
	var c Credentials
	b, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read the credentials: %w", err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("credentials %s: %w: remove the file and log in again", path, err)
	}
	if c.URL == "" {
		return c, fmt.Errorf("credentials %s name no gateway: remove the file and log in again", path)
	}
	return c, nil
}

// Fingerprint is the SHA-256 of a certificate in the form of openssl, without colons.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// Presented are the certificates that the gateway shows, its own first. Nobody has vouched for them: compare a
// fingerprint before any is trusted, and send no token until then.
func Presented(ctx context.Context, address string) ([]*x509.Certificate, error) {
	u, err := parseURL(address)
	if err != nil {
		return nil, err
	}
	host := u.Host
	if u.Port() == "" {
		host += ":443"
	}
	d := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: u.Hostname(),
		InsecureSkipVerify: true, //nolint:gosec // nothing is sent: the certificates are read to be compared
	}}
	conn, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, (&Client{base: u}).unanswered(err)
	}
	defer func() { _ = conn.Close() }()
	secure, ok := conn.(*tls.Conn)
	if !ok {
		return nil, fmt.Errorf("the connection to %s is no TLS", u)
	}
	return secure.ConnectionState().PeerCertificates, nil
}

// Pin finds the certificate with a fingerprint (hexadecimal SHA-256, colons allowed) among those that the gateway
// presents, and returns it in PEM form, for Credentials.CA.
func Pin(ctx context.Context, address, fingerprint string) (string, error) {
	want := strings.ToLower(strings.ReplaceAll(fingerprint, ":", ""))
	if b, err := hex.DecodeString(want); err != nil || len(b) != sha256.Size {
		return "", fmt.Errorf("fingerprint %q: give the SHA-256 of the certificate in hexadecimal, 64 digits", fingerprint)
	}
	certs, err := Presented(ctx, address)
	if err != nil {
		return "", err
	}
	var have []string
	for _, c := range certs {
		f := Fingerprint(c)
		if f == want {
			return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})), nil
		}
		have = append(have, f)
	}
	return "", fmt.Errorf("the gateway at %s shows another certificate than the fingerprint's (it shows %s): do not log in before you know why", address, strings.Join(have, ", "))
}
