// Package pki makes the certificates with which services know each other when no other authority is there.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 397 * 24 * time.Hour // what clients accept at most
	renewAt  = 30 * 24 * time.Hour
)

// Identities: the common name of a certificate. What each may do is told by the tables of libs/rpc and libs/bus.
const (
	Ingest   = "ingest"
	Classify = "classify"
	Enforce  = "enforce"
	Persist  = "persist"
	Gateway  = "gateway"
	NATS     = "nats"
	Tidegate = "tidegate" // the operator: the command line and the all-in-one
)

// Services are the names that get a certificate each.
var Services = []string{Ingest, Classify, Enforce, Persist, Gateway, NATS, Tidegate}

// DefaultDir is where certificates are looked for when no folder is named.
const DefaultDir = "/etc/tidegate/certs"

// Files are the paths of one identity's certificate.
type Files struct {
	CA, Cert, Key string
}

// FilesOf names the files that Ensure makes in dir for a service.
func FilesOf(dir, service string) Files {
	return Files{
		CA:   filepath.Join(dir, "ca.pem"),
		Cert: filepath.Join(dir, service+".pem"),
		Key:  filepath.Join(dir, service+"-key.pem"),
	}
}

// Made says what Ensure did to one file.
type Made struct {
	File    string
	Expires time.Time
	New     bool
}

// Ensure makes, in dir, a local authority (ca.pem, ca-key.pem) and a certificate and key for each service
// (NAME.pem, NAME-key.pem) for the names and addresses in hosts. What is there and stays valid for 30 days
// is kept, so it may be run again at any time; with force the services' certificates are made anew. One that is made anew
// keeps the names and addresses that it had.
// New keys are readable by the owner only. Processes that call it at the same time on one folder wait for each other.
func Ensure(dir string, hosts []string, force bool) ([]Made, error) {
	hosts, err := checked(hosts)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the certificate folder: %w", err)
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var out []Made
	ca, caKey, made, err := authority(dir)
	if err != nil {
		return nil, err
	}
	out = append(out, made)
	for _, name := range Services {
		made, err := leaf(dir, name, hosts, ca, caKey, force)
		if err != nil {
			return out, err
		}
		out = append(out, made)
	}
	return out, nil
}

// checked are the hosts that a list means, which may have been written with spaces.
func checked(hosts []string) ([]string, error) {
	var out []string
	for _, h := range hosts {
		if h = strings.TrimSpace(h); h == "" {
			continue
		}
		_, noAddress := netip.ParseAddr(h)
		if noAddress != nil && strings.ContainsFunc(h, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == ':' }) {
			return nil, fmt.Errorf("host %q: give a name in ASCII or an address, without scheme and port", h)
		}
		out = append(out, h)
	}
	return out, nil
}

// lock waits until this process alone works on dir.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // the operator's folder
	if err != nil {
		return nil, fmt.Errorf("lock the certificate folder: %w", err)
	}
	for {
		// Flock belongs to the open file, so it excludes goroutines of one process as well.
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close() // the error says more
		return nil, fmt.Errorf("lock the certificate folder: %w", err)
	}
	return func() { _ = f.Close() }, nil // closing releases the lock
}

func authority(dir string) (*x509.Certificate, *ecdsa.PrivateKey, Made, error) {
	file, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem")
	cert, key, err := load(file, keyFile)
	if err == nil {
		if time.Until(cert.NotAfter) < renewAt {
			return nil, nil, Made{}, fmt.Errorf("%s expires %s: move it away, run `tidegate certs` again and restart the services", file, cert.NotAfter.Format(time.DateOnly))
		}
		return cert, key, Made{File: file, Expires: cert.NotAfter}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, Made{}, err
	}
	if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) { // of another machine, whose services would not know a new one
		return nil, nil, Made{}, fmt.Errorf("%s is here and its key %s is not: run `tidegate certs` where the authority was made and copy the files, or move it away for a new authority", file, keyFile)
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, Made{}, fmt.Errorf("make the authority's key: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Tidegate local authority"},
		NotBefore: time.Now().Add(-5 * time.Minute), NotAfter: time.Now().Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	cert, err = write(file, keyFile, tmpl, tmpl, key, key)
	return cert, key, Made{File: file, Expires: tmpl.NotAfter, New: true}, err
}

func leaf(dir, name string, hosts []string, ca *x509.Certificate, caKey *ecdsa.PrivateKey, force bool) (Made, error) {
	file, keyFile := filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
	cert, old, err := load(file, keyFile)
	// A process that was killed between the two files left a pair that no service can use.
	fits := err == nil && old.PublicKey.Equal(cert.PublicKey)
	if fits && !force && time.Until(cert.NotAfter) >= renewAt && cert.CheckSignatureFrom(ca) == nil && covers(cert, hosts) {
		return Made{File: file, Expires: cert.NotAfter}, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Made{}, err
	}
	var names []string
	if err == nil { // what renews or adds a name does not know those that were given before
		names = cert.DNSNames
		for _, ip := range cert.IPAddresses {
			names = append(names, ip.String())
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Made{}, fmt.Errorf("make the key of %s: %w", name, err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-5 * time.Minute), NotAfter: time.Now().Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, h := range slices.Compact(slices.Sorted(slices.Values(slices.Concat([]string{name, "localhost", "127.0.0.1", "::1"}, names, hosts)))) {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	_, err = write(file, keyFile, tmpl, ca, key, caKey)
	return Made{File: file, Expires: tmpl.NotAfter, New: true}, err
}

func covers(cert *x509.Certificate, hosts []string) bool {
	for _, h := range hosts {
		if cert.VerifyHostname(h) != nil {
			return false
		}
	}
	return true
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return big.NewInt(time.Now().UnixNano())
	}
	return n
}

func write(file, keyFile string, tmpl, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", file, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", keyFile, err)
	}
	// The key first: a service that reloads on a new certificate then finds its key.
	if err := WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return nil, err
	}
	if err := WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// WriteFile writes a file so that a reader sees the old or the new content, nothing between. mode is of a new one; one that is
// there keeps its mode and, where root writes it, its owner: who could read it still can.
func WriteFile(file string, content []byte, mode os.FileMode) error {
	tmp := file + ".new"
	old, missing := os.Stat(file)
	if missing == nil {
		mode = old.Mode().Perm()
	}
	if err := os.WriteFile(tmp, content, mode); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if missing == nil {
		if err := keep(tmp, old); err != nil {
			return fmt.Errorf("write %s: %w", file, err)
		}
	}
	if err := os.Rename(tmp, file); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}

// keep gives a file the owner and the mode of another.
func keep(file string, like fs.FileInfo) error {
	if st, ok := like.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		if err := os.Chown(file, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	return os.Chmod(file, like.Mode().Perm()) // beyond the umask
}

func load(file, keyFile string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, fmt.Errorf("read the certificate: %w", err)
	}
	kb, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("read the key of %s: %w", file, err)
	}
	block, _ := pem.Decode(b)
	keyBlock, _ := pem.Decode(kb)
	if block == nil || keyBlock == nil {
		return nil, nil, fmt.Errorf("%s or its key is not PEM: move both away and run `tidegate certs` again", file)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", file, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", keyFile, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("%s is not an ECDSA key: move it away and run `tidegate certs` again", keyFile)
	}
	return cert, ec, nil
}
