package rest

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/auth"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/edge"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is the API behind the real edge and the real check of tokens, over a fake mesh.
type rig struct {
	*document
	mesh    *fakeMesh
	tel     *telemetry.Telemetry
	api     *API
	chain   *edge.Chain
	public  ed25519.PublicKey
	private ed25519.PrivateKey
	tokens  map[string]string // by role
	client  atomic.Uint32
}

const keyID = "key1"

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{mesh: newFakeMesh(), tel: telemetry.Discard("gateway"), tokens: map[string]string{"": ""}}
	var err error
	if r.public, r.private, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(map[string]any{"keys": []any{map[string]any{
		"kty": "OKP", "crv": "Ed25519", "kid": keyID, "use": "sig", "x": base64.RawURLEncoding.EncodeToString(r.public)}}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := auth.DefaultConfig()
	cfg.JWKSFile = filepath.Join(t.TempDir(), "set.json")
	if err := os.WriteFile(cfg.JWKSFile, set, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := auth.New(context.Background(), cfg, r.tel, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = a.Run(ctx) }() // it reads the key set again for a token of an unknown key
	t.Cleanup(func() { cancel(); <-ended })
	live, err := json.Marshal(api.Live{TimeNs: someTime, PPS: map[string]float64{"seen": 1}, BPS: map[string]float64{}, Attacks: []api.Attack{fakeAttack},
		TopDst: []api.Talker{}, TopSrc: []api.Talker{}, Ledger: fakeLedger, Missing: []api.Missing{}})
	if err != nil {
		t.Fatal(err)
	}
	stream := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "event: live\ndata: {}\n\n")
	})
	if r.api, err = New(Deps{Operations: r.mesh, Snapshot: func() ([]byte, string) { return live, `"live1"` }, Stream: stream, Version: "test"}); err != nil {
		t.Fatal(err)
	}
	limits := edge.DefaultConfig()
	limits.ViewerReads, limits.OperatorReads, limits.OperatorWrites, limits.NobodyRequests = 0, 0, 0, 0
	if r.chain, err = edge.New(limits, r.tel, a, r.api); err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"viewer", "operator", "admin"} {
		claims := goodClaims()
		claims["role"], claims["sub"] = role, "the-"+role
		r.tokens[role] = sign(t, jwt.SigningMethodEdDSA, r.private, keyID, claims)
	}
	r.document = readDocument(t, r.api.document)
	return r
}

func goodClaims() jwt.MapClaims {
	now := time.Now()
	return jwt.MapClaims{"iss": "tidegate", "aud": "tidegate-gateway", "sub": "ada", "role": "admin",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix()}
}

func sign(t testing.TB, method jwt.SigningMethod, key any, kid string, claims jwt.MapClaims) string {
	t.Helper()
	token := jwt.NewWithClaims(method, claims)
	token.Header["kid"] = kid
	signed, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// request is one as it is sent. Headers alternate name and value.
type request struct {
	method, target string
	header         []string
	body           string
}

// call makes a request of a role, with a body as JSON unless it is empty.
func call(method, target, body string, header ...string) request {
	if body != "" {
		header = append(header, "Content-Type", "application/json")
	}
	return request{method, target, header, body}
}

// text is the request on the wire.
func (q *request) text(token string) string {
	var b strings.Builder
	b.WriteString(q.method + " " + q.target + " HTTP/1.1\r\nHost: gate.example\r\n")
	if token != "" {
		b.WriteString("Authorization: Bearer " + token + "\r\n")
	}
	for i := 0; i < len(q.header); i += 2 {
		b.WriteString(q.header[i] + ": " + q.header[i+1] + "\r\n")
	}
	if q.body != "" {
		b.WriteString("Content-Length: " + itoa(len(q.body)) + "\r\n")
	}
	b.WriteString("\r\n" + q.body)
	return b.String()
}

// send reads the request as the server does and runs it through the whole chain. ok is false when net/http itself
// takes it for no HTTP.
func (r *rig) send(token string, q request) (w *httptest.ResponseRecorder, ok bool) {
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(q.text(token))))
	if err != nil {
		return nil, false
	}
	// Each request comes from an address of its own: bad tokens lock an address out.
	n := r.client.Add(1)
	req.RemoteAddr = "10." + itoa(int(n>>16&255)) + "." + itoa(int(n>>8&255)) + "." + itoa(int(n&255)) + ":4000"
	rec := connection{httptest.NewRecorder()}
	r.chain.ServeHTTP(rec, req)
	if q.method == http.MethodHead {
		rec.Body.Reset() // as the server does
	}
	return rec.ResponseRecorder, true
}

// as sends a request of a role, checks that the document has the answer, and gives it.
func (r *rig) as(t testing.TB, role string, q request) *httptest.ResponseRecorder {
	t.Helper()
	w, ok := r.send(r.tokens[role], q)
	if !ok {
		t.Fatalf("%s %s is no HTTP", q.method, q.target)
	}
	if err := r.check(q, w); err != nil {
		t.Errorf("%s %s: status %d: %v\n%s", q.method, q.target, w.Code, err, w.Body)
	}
	return w
}

// connection takes deadlines.
type connection struct{ *httptest.ResponseRecorder }

func (connection) SetReadDeadline(time.Time) error { return nil }

func problemOf(t testing.TB, w *httptest.ResponseRecorder) api.Problem {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Errorf("%q is no problem: %v", w.Body, err)
	}
	return p
}
