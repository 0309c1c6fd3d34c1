package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestEnsure(t *testing.T) {
	dir := t.TempDir()
	first, err := Ensure(dir, []string{"gate.example.net", "192.0.2.7"}, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(first) != 1+len(Services) {
		t.Fatalf("made %d files, want %d", len(first), 1+len(Services))
	}
	for _, m := range first {
		if !m.New {
			t.Errorf("%s is not new in an empty folder", m.File)
		}
	}
	caPEM, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(caPEM)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "classify.pem"), filepath.Join(dir, "classify-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"classify", "localhost", "127.0.0.1", "gate.example.net", "192.0.2.7"} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("the certificate does not stand for %s: %v", name, err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "classify-key.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key mode %v, error %v: want 0600", info.Mode(), err)
	}

	again, err := Ensure(dir, []string{"gate.example.net"}, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range again {
		if m.New {
			t.Errorf("%s was made again though it is valid", m.File)
		}
	}
	more, err := Ensure(dir, []string{"other.example.net"}, false)
	if err != nil {
		t.Fatal(err)
	}
	if more[0].New || !more[1].New {
		t.Errorf("a new host name must keep the authority and renew the certificates: %+v", more[:2])
	}
	if _, err := Ensure(dir, nil, true); err != nil {
		t.Fatal(err)
	}
	if pair, err = tls.LoadX509KeyPair(filepath.Join(dir, "classify.pem"), filepath.Join(dir, "classify-key.pem")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"classify", "localhost", "127.0.0.1", "gate.example.net", "192.0.2.7", "other.example.net"} {
		if err := pair.Leaf.VerifyHostname(name); err != nil {
			t.Errorf("a name that was given before is lost: %v", err)
		}
	}
	if n := len(pair.Leaf.DNSNames) + len(pair.Leaf.IPAddresses); n != 7 {
		t.Errorf("%v and %v: each name once", pair.Leaf.DNSNames, pair.Leaf.IPAddresses)
	}
}

// TestEnsureElsewhere: a machine that got ca.pem and a service's files makes no authority of its own in their place.
func TestEnsureElsewhere(t *testing.T) {
	dir := t.TempDir()
	if _, err := Ensure(dir, nil, false); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "ca-key.pem")); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(dir, nil, false); err == nil || !strings.Contains(err.Error(), "ca-key.pem") {
		t.Errorf("without the authority's key: %v", err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "ca.pem")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the authority was replaced: %v", err)
	}
}

// TestRenewedIsReadable: who could read a certificate's files can read those that are made in their place.
func TestRenewedIsReadable(t *testing.T) {
	dir := t.TempDir()
	if _, err := Ensure(dir, nil, false); err != nil {
		t.Fatal(err)
	}
	key := FilesOf(dir, Ingest).Key
	if err := os.Chmod(key, 0o640); err != nil {
		t.Fatal(err)
	}
	owner := os.Geteuid()
	if owner == 0 {
		owner = 10001
		if err := os.Chown(key, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Ensure(dir, nil, true); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(key)
	if err != nil {
		t.Fatal(err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != owner || info.Mode().Perm() != 0o640 {
		t.Errorf("the new key is of user %d with mode %v, want %d and 0640", st.Uid, info.Mode(), owner)
	}
}

// TestEnsureTogether: starters that come at once end up with one authority.
func TestEnsureTogether(t *testing.T) {
	dir := t.TempDir()
	const starters = 8
	results := make(chan []Made, starters)
	for range starters {
		go func() {
			made, err := Ensure(dir, nil, false)
			if err != nil {
				t.Error(err)
			}
			results <- made
		}()
	}
	fresh := 0
	for range starters {
		for _, m := range <-results {
			if m.New {
				fresh++
			}
		}
	}
	if want := 1 + len(Services); fresh != want {
		t.Errorf("%d files were made, want each of %d once", fresh, want)
	}
	ca, err := os.ReadFile(FilesOf(dir, Persist).CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	for _, name := range Services {
		f := FilesOf(dir, name)
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if pair.Leaf.Subject.CommonName != name {
			t.Errorf("%s is issued to %q", f.Cert, pair.Leaf.Subject.CommonName)
		}
	}
}

func TestEnsureDamaged(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"ca.pem", "ca-key.pem"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("no PEM"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Ensure(dir, nil, false); err == nil {
		t.Fatal("a damaged authority was replaced silently")
	}
}

// A process that is killed between the two files of a renewal leaves a new key beside the old certificate.
func TestEnsureMendsAPairThatDoesNotFit(t *testing.T) {
	dir := t.TempDir()
	if _, err := Ensure(dir, []string{"gate.example.net"}, false); err != nil {
		t.Fatal(err)
	}
	files := FilesOf(dir, Gateway)
	other, err := os.ReadFile(FilesOf(dir, Persist).Key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files.Key, other, 0o600); err != nil {
		t.Fatal(err)
	}
	made, err := Ensure(dir, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range made {
		if m.New != (m.File == files.Cert) {
			t.Errorf("%s: made anew %v", m.File, m.New)
		}
	}
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.Leaf.VerifyHostname("gate.example.net"); err != nil {
		t.Errorf("the names it had: %v", err)
	}
}

// What cannot be the name of a host is refused: its certificate would be good for nobody. A list may have spaces and a comma
// too many.
func TestHosts(t *testing.T) {
	for _, h := range []string{"https://gw.example", "gw.example:8080", "gw.example/", "two names", "ä.example"} {
		if made, err := Ensure(t.TempDir(), []string{"a.example", h}, false); err == nil || !strings.Contains(err.Error(), h) || len(made) != 0 {
			t.Errorf("%q: %d files, %v", h, len(made), err)
		}
	}
	dir := t.TempDir()
	for i := range 2 {
		made, err := Ensure(dir, []string{"a.example", " b.example", "", "*.example.net", "2001:db8::1", "fe80::1%eth0"}, false)
		if err != nil {
			t.Fatal(err)
		}
		if made[1].New != (i == 0) {
			t.Errorf("call %d: made anew %v", i+1, made[1].New)
		}
	}
	cert, _, err := load(FilesOf(dir, Gateway).Cert, FilesOf(dir, Gateway).Key)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.VerifyHostname("b.example"); err != nil {
		t.Error(err)
	}
}
