package rest

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// needs is who may do what, by hand: it is the expectation, not a copy of what the product declares. Empty: everybody.
var needs = map[string]string{
	"list-flows": "viewer", "top": "viewer", "timeseries": "viewer",
	"list-attacks": "viewer", "get-attack": "viewer", "get-attack-pcap": "viewer",
	"list-verdicts": "viewer", "get-verdict": "viewer",
	"list-rules": "viewer", "get-rule": "viewer", "explain-rule": "viewer",
	"list-groups": "viewer", "list-sensors": "viewer", "list-nodes": "viewer",
	"get-ledger": "viewer", "get-status": "viewer", "get-live": "viewer", "get-me": "viewer", "get-panic": "viewer", "stream": "viewer",
	"add-rule": "operator", "dry-run-rule": "operator", "replace-rule": "operator", "revoke-rule": "operator",
	"list-lists": "viewer", "get-list": "viewer", "put-list": "operator", "put-list-entries": "operator", "delete-list": "operator",
	"panic": "operator", "end-panic": "operator", "capture": "operator",
	"list-audit":  "admin",
	"get-openapi": "",
}

var ranks = []string{"", "viewer", "operator", "admin"}

// TestRoles is every operation with every role.
func TestRoles(t *testing.T) {
	r := newRig(t)
	for _, op := range r.operations {
		need, known := needs[op.id]
		if !known {
			t.Errorf("who may do %s is not written down", op.id)
			continue
		}
		if op.role != need {
			t.Errorf("the document asks for %q to do %s, want %q", op.role, op.id, need)
		}
		for rank, role := range ranks {
			r.mesh.reset()
			w := r.as(t, role, contractCases[op.id][0].request)
			want := contractCases[op.id][0].want
			switch {
			case rank == 0 && need != "":
				want = 401
			case rank < slices.Index(ranks, need):
				want = 403
			}
			if w.Code/100 == 2 && want/100 == 2 {
				continue // whether 200 or 201 depends on what was done before
			}
			if w.Code != want {
				t.Errorf("%s as %q: status %d, want %d", op.id, role, w.Code, want)
			}
			if want == 401 && !strings.HasPrefix(w.Header().Get("Www-Authenticate"), "Bearer ") {
				t.Errorf("%s as %q: no challenge", op.id, role)
			}
		}
	}
	if len(r.operations) != len(needs) {
		t.Errorf("the document has %d operations, the table %d", len(r.operations), len(needs))
	}
}

// badTokens all claim to be an admin.
func badTokens(t *testing.T, r *rig) map[string]string {
	t.Helper()
	public, stranger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_ = public
	der, err := x509.MarshalPKIXPublicKey(r.public)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	with := func(change func(jwt.MapClaims)) jwt.MapClaims {
		c := goodClaims()
		change(c)
		return c
	}
	ours := func(change func(jwt.MapClaims)) string {
		return sign(t, jwt.SigningMethodEdDSA, r.private, keyID, with(change))
	}
	none := sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, keyID, goodClaims())
	good := ours(func(jwt.MapClaims) {})
	parts := strings.Split(good, ".")
	past := time.Now().Add(-time.Hour).Unix()
	return map[string]string{
		"forged signature":       sign(t, jwt.SigningMethodEdDSA, stranger, keyID, goodClaims()),
		"other claims":           parts[0] + "." + strings.Split(none, ".")[1] + "x." + parts[2],
		"no signature":           parts[0] + "." + parts[1] + ".",
		"alg none":               none,
		"alg none, signature on": none + parts[2],
		"HS256 by public bytes":  sign(t, jwt.SigningMethodHS256, []byte(r.public), keyID, goodClaims()),
		"HS256 by public PEM":    sign(t, jwt.SigningMethodHS256, text, keyID, goodClaims()),
		"unknown key":            sign(t, jwt.SigningMethodEdDSA, r.private, "key2", goodClaims()),
		"expired":                ours(func(c jwt.MapClaims) { c["exp"] = past }),
		"never expires":          ours(func(c jwt.MapClaims) { delete(c, "exp") }),
		"not yet valid":          ours(func(c jwt.MapClaims) { c["nbf"] = time.Now().Add(time.Hour).Unix() }),
		"wrong audience":         ours(func(c jwt.MapClaims) { c["aud"] = "somebody-else" }),
		"no audience":            ours(func(c jwt.MapClaims) { delete(c, "aud") }),
		"wrong issuer":           ours(func(c jwt.MapClaims) { c["iss"] = "https://evil.example" }),
		"unknown role":           ours(func(c jwt.MapClaims) { c["role"] = "root" }),
		"no role":                ours(func(c jwt.MapClaims) { delete(c, "role") }),
		"no subject":             ours(func(c jwt.MapClaims) { delete(c, "sub") }),
		"no token at all":        "e30.e30.e30",
		"garbage":                "garbage",
	}
}

// TestBadTokens is every operation with every kind of token that must not count: they see what everybody sees, and
// nothing reaches the mesh.
func TestBadTokens(t *testing.T) {
	r := newRig(t)
	tokens := badTokens(t, r)
	for _, name := range slices.Sorted(maps.Keys(tokens)) {
		for _, op := range r.operations {
			q := contractCases[op.id][0].request
			w, ok := r.send(tokens[name], q)
			if !ok {
				t.Fatalf("%s: no HTTP", name)
			}
			want := 401
			if needs[op.id] == "" {
				want = 200
			}
			if w.Code != want {
				t.Errorf("%s with a token that is %q: status %d, want %d: %s", op.id, name, w.Code, want, w.Body)
			}
			if err := r.check(q, w); err != nil {
				t.Errorf("%s with a token that is %q: %v", op.id, name, err)
			}
		}
	}
	if len(r.mesh.calls) > 0 {
		t.Errorf("bad tokens reached the mesh: %v", r.mesh.calls)
	}
	// A good one still counts, from an address that has not failed.
	if w := r.as(t, "admin", call("GET", "/api/v1/me", "")); w.Code != 200 {
		t.Errorf("a good token: status %d", w.Code)
	}
}
