package e2e

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/token"
)

// expire signs a service's certificate anew so that it ends at a time.
func expire(t *testing.T, dir, service string, ends time.Time) {
	t.Helper()
	files := pki.FilesOf(dir, service)
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := tls.LoadX509KeyPair(files.CA, filepath.Join(dir, "ca-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	template := *pair.Leaf
	template.NotBefore, template.NotAfter = time.Now().Add(-48*time.Hour), ends
	der, err := x509.CreateCertificate(rand.Reader, &template, ca.Leaf, pair.PrivateKey.(crypto.Signer).Public(), ca.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.WriteFile(files.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
}

// sayUntil reads /readyz until it holds all parts.
func sayUntil(t *testing.T, p *rig.Process, metrics string, parts ...string) {
	t.Helper()
	err := rig.Eventually(20*time.Second, func() error {
		r, err := http.Get("http://" + metrics + "/readyz")
		if err != nil {
			return err
		}
		defer func() { _ = r.Body.Close() }()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		for _, part := range parts {
			if !strings.Contains(string(body), part) {
				return fmt.Errorf("/readyz (%s) does not say %q: %s", r.Status, part, body)
			}
		}
		return nil
	})
	if err != nil {
		t.Errorf("%s: %v", p.Name, err)
	}
}

// TestBadCertificates: whatever a certificate is wrong with, and whoever's it is, the services live, and one sentence
// says which it is: in the log, in /readyz and the container's health, in `tidegate status`. A renewed file is enough.
func TestBadCertificates(t *testing.T) {
	certs, foreign := rig.Certs(t), rig.Certs(t)
	expire(t, certs, pki.Persist, time.Now().Add(-time.Hour))
	expire(t, certs, pki.Gateway, time.Now().Add(10*24*time.Hour))
	_, natsURL := rig.NATS(t, certs)
	start := func(name string, args ...string) (p *rig.Process, addr, metrics string) {
		addr, metrics = rig.FreeAddr(t), rig.FreeAddr(t)
		args = append([]string{"--tls-dir", certs, "--nats-url", natsURL, "--listen", addr, "--metrics-listen", metrics}, args...)
		return rig.Start(t, rig.Binary(t, "tidegate-"+name), nil, args...), addr, metrics
	}
	persist, persistAddr, persistMetrics := start("persist", "--db-type", "sqlite", "--data-dir", t.TempDir())
	// Another authority's for NATS alone.
	stray := pki.FilesOf(foreign, pki.Classify)
	classify, classifyAddr, classifyMetrics := start("classify", "--nats-tls-ca", pki.FilesOf(certs, pki.Classify).CA,
		"--nats-tls-cert", stray.Cert, "--nats-tls-key", stray.Key)
	g := rig.NewGateway(t, certs, pki.FilesOf(certs, pki.Gateway).CA)
	rig.Start(t, rig.Binary(t, "tidegate-gateway"), nil, "--tls-dir", certs, "--nats-url", natsURL, "--listen", g.Addr,
		"--metrics-listen", rig.FreeAddr(t), "--jwks-file", filepath.Join(certs, token.JWKSFile), "--persist", persistAddr, "--classify", classifyAddr)

	own := pki.FilesOf(certs, pki.Persist).Cert
	sayUntil(t, persist, persistMetrics, "certificate: the certificate "+own+" or its authority expired 20", "NATS at "+natsURL+" refuses the certificate "+own)
	if out, err := exec.Command(rig.Binary(t, "tidegate-health"), "--address", persistMetrics).Output(); err == nil || !strings.Contains(string(out), own+" or its authority expired") {
		t.Errorf("tidegate-health: %v: %s", err, out)
	}
	if log := persist.Log(); !strings.Contains(log, own) || !strings.Contains(log, "refuses the certificate") {
		t.Errorf("the log does not name the certificate: %s", log)
	}
	sayUntil(t, classify, classifyMetrics, "NATS at "+natsURL+" refuses the certificate "+stray.Cert)

	status := func() string {
		out, err := exec.Command(rig.Binary(t, "tidegate"), append([]string{"status"}, g.Flags(t, "viewer")...)...).CombinedOutput()
		if err != nil {
			return err.Error() + ": " + string(out)
		}
		return string(out)
	}
	says := func(parts ...string) {
		t.Helper()
		var out string
		err := rig.Eventually(20*time.Second, func() error {
			out = status()
			for _, part := range parts {
				if !strings.Contains(out, part) {
					return fmt.Errorf("tidegate status does not say %q:\n%s", part, out)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	says("! persist at "+persistAddr, "the certificate 'persist' of persist at "+persistAddr+" expired 20", "renew it there with `tidegate certs`",
		"refuse", stray.Cert)

	expire(t, certs, pki.Persist, time.Now().Add(20*24*time.Hour+time.Minute))
	says("the certificate of persist", "ends in 20 days", time.Now().Add(20*24*time.Hour+time.Minute).UTC().Format(time.DateOnly))
	sayUntil(t, persist, persistMetrics, "ready")
	// Connections that exist live on, so the service itself can say it.
	expire(t, certs, pki.Persist, time.Now().Add(-time.Hour))
	says("the certificate of persist", "has ended", "the certificate "+own+" or its authority expired 20")
}

// TestBadServerCertificate: NATS with a certificate that has expired, or of another authority.
func TestBadServerCertificate(t *testing.T) {
	certs, foreign, expired := rig.Certs(t), rig.Certs(t), rig.Certs(t)
	expire(t, expired, pki.NATS, time.Now().Add(-time.Hour))
	for _, c := range []struct {
		name, nats, own string
		says            []string
	}{
		{"expired", expired, expired, []string{"the certificate 'nats' of NATS at ", " expired 20", "renew it there"}},
		{"another authority", foreign, certs, []string{"the certificate 'nats' of NATS at ", "is not signed by " + filepath.Join(certs, "ca.pem")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, url := rig.NATS(t, c.nats)
			metrics := rig.FreeAddr(t)
			p := rig.Start(t, rig.Binary(t, "tidegate-persist"), nil, "--tls-dir", c.own, "--nats-url", url, "--db-type", "sqlite",
				"--data-dir", t.TempDir(), "--listen", rig.FreeAddr(t), "--metrics-listen", metrics)
			sayUntil(t, p, metrics, append(c.says, url)...)
			for _, part := range c.says {
				if !strings.Contains(p.Log(), part) {
					t.Errorf("the log does not say %q: %s", part, p.Log())
				}
			}
		})
	}
}

// TestBadSecretFiles: a service with a secret that is missing, another's or damaged names the file.
func TestBadSecretFiles(t *testing.T) {
	certs := rig.Certs(t)
	damaged := filepath.Join(t.TempDir(), "damaged.pem")
	if err := os.WriteFile(damaged, []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	classify, persist := pki.FilesOf(certs, pki.Classify), pki.FilesOf(certs, pki.Persist)
	empty := t.TempDir()
	for _, c := range []struct {
		mistake, service string
		args             []string
		says             []string
	}{
		{"no certificates", "classify", []string{"--tls-dir", empty}, []string{filepath.Join(empty, "ca.pem"), "tidegate certs --dir " + empty, "--insecure"}},
		{"another service's", "classify", []string{"--tls-dir", certs, "--tls-cert", persist.Cert, "--tls-key", persist.Key}, []string{persist.Cert, `is of "persist" and this is classify`}},
		{"key of another", "classify", []string{"--tls-dir", certs, "--tls-cert", classify.Cert, "--tls-key", persist.Key}, []string{persist.Key, "private key does not match"}},
		{"damaged authority", "classify", []string{"--tls-dir", certs, "--tls-ca", damaged}, []string{damaged, "no PEM certificate"}},
		{"certificate without key", "persist", []string{"--tls-dir", certs, "--tls-cert", persist.Cert}, []string{"--tls-cert and --tls-key belong together"}},
		{"no HTTPS key", "gateway", []string{"--tls-dir", certs, "--https-cert", classify.Cert, "--https-key", filepath.Join(empty, "k.pem")}, []string{filepath.Join(empty, "k.pem")}},
	} {
		exit, stderr := endBinary(t, rig.Binary(t, "tidegate-"+c.service), nil, append(c.args, "--metrics-listen", "", "--nats-url", "nats://127.0.0.1:1", "--listen", rig.FreeAddr(t))...)
		checkEnd(t, c.service+": "+c.mistake, exit, 2, stderr, c.says)
	}
	// The keys of tokens may come later.
	metrics, keys := rig.FreeAddr(t), filepath.Join(empty, "jwks.json")
	p := rig.Start(t, rig.Binary(t, "tidegate-gateway"), nil, "--tls-dir", certs, "--jwks-file", keys, "--metrics-listen", metrics,
		"--nats-url", "nats://127.0.0.1:1", "--listen", rig.FreeAddr(t))
	sayUntil(t, p, metrics, keys, "no such file")
}
