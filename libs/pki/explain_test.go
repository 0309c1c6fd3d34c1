package pki

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestLostAlert: a connection that breaks off says no reason; the own files tell when they are the likely one.
func TestLostAlert(t *testing.T) {
	ours, theirs := t.TempDir(), t.TempDir()
	for _, dir := range []string{ours, theirs} {
		if _, err := Ensure(dir, []string{"localhost"}, false); err != nil {
			t.Fatal(err)
		}
	}
	good, stray, ended := FilesOf(ours, Persist), FilesOf(theirs, Persist), FilesOf(ours, Classify)
	stray.CA = good.CA

	pair, err := tls.LoadX509KeyPair(ended.Cert, ended.Key)
	if err != nil {
		t.Fatal(err)
	}
	ca, caKey, err := load(ours+"/ca.pem", ours+"/ca-key.pem")
	if err != nil {
		t.Fatal(err)
	}
	pair.Leaf.NotBefore, pair.Leaf.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, pair.Leaf, ca, pair.Leaf.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(ended.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}

	for _, cause := range []syscall.Errno{syscall.EPIPE, syscall.ECONNRESET} {
		broken := &net.OpError{Op: "write", Err: cause}
		for _, c := range []struct {
			own  Files
			says string // empty: the error comes back as it is
		}{
			{good, ""},
			{Files{}, ""},
			{stray, fmt.Sprintf("NATS refuses the certificate %s, which another authority than its own has signed", stray.Cert)},
			{ended, fmt.Sprintf("NATS refuses the certificate %s, which has expired", ended.Cert)},
		} {
			err := Explain(broken, "NATS", c.own)
			var explained *HandshakeError
			if errors.As(err, &explained) != (c.says != "") || !strings.Contains(err.Error(), c.says) || !errors.Is(err, cause) {
				t.Errorf("%v with %s: %v, want a sentence with %q", cause, c.own.Cert, err, c.says)
			}
		}
	}
	if err := Explain(syscall.ECONNREFUSED, "NATS", ended); err != error(syscall.ECONNREFUSED) {
		t.Errorf("a server that is not there: %v", err)
	}
}
