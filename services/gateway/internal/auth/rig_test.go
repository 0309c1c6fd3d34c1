package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// signer is a key pair of one algorithm.
type signer struct {
	method  jwt.SigningMethod
	private crypto.PrivateKey
	kid     string
	jwk     map[string]any
}

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func newSigner(t testing.TB, alg, kid string) signer {
	t.Helper()
	s := signer{kid: kid, method: jwt.GetSigningMethod(alg)}
	switch alg {
	case "EdDSA":
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		s.private, s.jwk = private, map[string]any{"kty": "OKP", "crv": "Ed25519", "x": b64(public)}
	case "ES256":
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		s.private = private
		s.jwk = map[string]any{"kty": "EC", "crv": "P-256", "x": b64(private.X.FillBytes(make([]byte, 32))), "y": b64(private.Y.FillBytes(make([]byte, 32)))}
	case "RS256":
		s.private = rsaKey()
		s.jwk = rsaJWK(&rsaKey().PublicKey)
	}
	s.jwk["kid"], s.jwk["use"] = kid, "sig"
	return s
}

func rsaJWK(k *rsa.PublicKey) map[string]any {
	return map[string]any{"kty": "RSA", "n": b64(k.N.Bytes()), "e": b64(big.NewInt(int64(k.E)).Bytes())}
}

func keySetOf(t testing.TB, signers ...signer) []byte {
	t.Helper()
	set := map[string][]any{"keys": {}}
	for _, s := range signers {
		set["keys"] = append(set["keys"], s.jwk)
	}
	data, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func goodClaims() jwt.MapClaims {
	now := time.Now()
	return jwt.MapClaims{"iss": "tidegate", "aud": "tidegate-gateway", "sub": "ada", "role": "operator",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix()}
}

// sign makes a token; header is added to and may be nil.
func (s signer) sign(t testing.TB, claims jwt.MapClaims, header map[string]any) string {
	t.Helper()
	token := jwt.NewWithClaims(s.method, claims)
	token.Header["kid"] = s.kid
	for k, v := range header {
		if v == nil {
			delete(token.Header, k)
		} else {
			token.Header[k] = v
		}
	}
	signed, err := token.SignedString(s.private)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// fileConfig puts a key set into a file and names it.
func fileConfig(t testing.TB, set []byte) Config {
	t.Helper()
	cfg := DefaultConfig()
	cfg.JWKSFile = filepath.Join(t.TempDir(), "set.json")
	if err := os.WriteFile(cfg.JWKSFile, set, 0o600); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func newAuth(t testing.TB, cfg Config, auditor Auditor) (*Authenticator, *telemetry.Telemetry) {
	t.Helper()
	tel := telemetry.Discard("gateway")
	a, err := New(context.Background(), cfg, tel, auditor)
	if err != nil {
		t.Fatal(err)
	}
	return a, tel
}

// runAuth runs it until the test ends.
func runAuth(t testing.TB, a *Authenticator) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = a.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
}

// value is a counter's or gauge's sum over the series that have these labels.
func value(t testing.TB, r *prometheus.Registry, name string, labels map[string]string) (sum float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.Metric {
			match := 0
			for _, l := range m.Label {
				if labels[l.GetName()] == l.GetValue() {
					match++
				}
			}
			if match == len(labels) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// audits collects what is published.
type audits struct {
	mu   sync.Mutex
	all  []*eventv1.Audit
	fail error
}

func (a *audits) PublishAudit(_ context.Context, e *eventv1.Audit) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail == nil {
		a.all = append(a.all, e)
	}
	return a.fail
}

func (a *audits) list() []*eventv1.Audit {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]*eventv1.Audit(nil), a.all...)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}
