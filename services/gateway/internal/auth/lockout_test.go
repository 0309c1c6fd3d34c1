package auth

import (
	"context"
	"encoding/binary"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

func TestLockout(t *testing.T) {
	s := newSigner(t, "EdDSA", "k1")
	log := &audits{}
	a, tel := newAuth(t, fileConfig(t, keySetOf(t, s)), log)
	runAuth(t, a)
	now := time.Now()
	a.now = func() time.Time { return now }
	ctx := context.Background()
	claims := goodClaims()
	claims["exp"] = now.Add(24 * time.Hour).Unix()
	good := s.sign(t, claims, nil)
	seen := s.sign(t, claims, map[string]any{"x": 1})
	here, neighbour, elsewhere := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8:0:1::1")
	if _, err := a.Login(ctx, seen, here, "r0"); err != nil {
		t.Fatal(err)
	}
	var locked *LockedError
	for i := range lockAfter {
		if _, err := a.Login(ctx, "a.b.c", here, "r1"); !errors.Is(err, ErrInvalid) {
			t.Fatalf("failure %d: %v", i, err)
		}
	}
	if _, err := a.Login(ctx, good, neighbour, "r2"); !errors.As(err, &locked) || locked.RetryAfter != lockBase {
		t.Fatalf("after %d failures: %v", lockAfter, err)
	}
	if _, err := a.Login(ctx, seen, here, "r3"); err != nil {
		t.Errorf("a token that is in already: %v", err)
	}
	if _, err := a.Login(ctx, good, elsewhere, "r4"); err != nil {
		t.Errorf("another network: %v", err)
	}
	eventually(t, "the lock is audited", func() bool { return len(log.list()) == 1 })
	e := log.list()[0]
	if e.Action != "login.locked" || e.Remote != here.String() || e.RequestId != "r1" || e.Outcome != eventv1.AuditOutcome_AUDIT_OUTCOME_DONE ||
		e.Gateway != "test" || e.Id == "" || e.TimeNs != now.UnixNano() {
		t.Errorf("audit entry %v", e)
	}
	// The next failure after the lock locks for twice as long, up to the most.
	for want := 2 * lockBase; want < 2*lockMost; want *= 2 {
		want := min(want, lockMost)
		now = now.Add(lockMost + time.Second)
		if _, err := a.Login(ctx, "a.b.c", here, ""); !errors.Is(err, ErrInvalid) {
			t.Fatalf("after the lock: %v", err)
		}
		if got := a.lockout.locked(here); got != want {
			t.Errorf("locked for %s, want %s", got, want)
		}
	}
	now = now.Add(lockMost + time.Second)
	other := s.sign(t, claims, map[string]any{"x": 2})
	if _, err := a.Login(ctx, other, here, ""); err != nil {
		t.Fatalf("a good token after the lock: %v", err)
	}
	if _, err := a.Login(ctx, "a.b.c", here, ""); !errors.Is(err, ErrInvalid) || a.lockout.locked(here) != 0 {
		t.Errorf("success did not forgive: %v, locked for %s", err, a.lockout.locked(here))
	}
	if n := value(t, tel.Registry, "tidegate_gateway_lockouts_total", nil); n < 2 {
		t.Errorf("%v locks counted", n)
	}
	if n := value(t, tel.Registry, "tidegate_gateway_token_failures_total", map[string]string{"reason": "locked"}); n != 1 {
		t.Errorf("%v refusals under lock counted, want 1", n)
	}
}

// Who comes with a session that is over, or while there are no keys, is no guesser.
func TestNoLockout(t *testing.T) {
	s := newSigner(t, "EdDSA", "k1")
	a, _ := newAuth(t, fileConfig(t, keySetOf(t, s)), nil)
	claims := goodClaims()
	claims["exp"] = time.Now().Add(-time.Hour).Unix()
	old := s.sign(t, claims, nil)
	here := netip.MustParseAddr("192.0.2.1")
	for range 3 * lockAfter {
		if _, err := a.Login(context.Background(), old, here, ""); !errors.Is(err, ErrExpired) {
			t.Fatal(err)
		}
	}
	a.keys.Store(nil)
	for range 3 * lockAfter {
		if _, err := a.Login(context.Background(), old, here, ""); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
}

func TestAuditThatFails(t *testing.T) {
	log := &audits{fail: errors.New("away")}
	a, tel := newAuth(t, fileConfig(t, keySetOf(t, newSigner(t, "EdDSA", "k1"))), log)
	for range lockAfter {
		a.Failed(netip.MustParseAddr("192.0.2.1"), "")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // what waits is still tried at the end
	_ = a.Run(ctx)
	if n := value(t, tel.Registry, "tidegate_errors_total", map[string]string{"op": "audit"}); n != 1 {
		t.Errorf("%v errors counted, want 1", n)
	}
}

func TestLockoutIsBounded(t *testing.T) {
	now := time.Now()
	l := newLockout(func() time.Time { return now })
	locked := netip.MustParseAddr("192.0.2.1")
	for range lockAfter {
		l.fail(locked)
	}
	for i := range 3 * lockedSize {
		var a [16]byte
		a[0] = 0x20
		binary.BigEndian.PutUint32(a[2:], uint32(i))
		l.fail(netip.AddrFrom16(a))
	}
	if n := len(l.entries); n > lockedSize {
		t.Errorf("%d entries, the bound is %d", n, lockedSize)
	}
	if l.locked(locked) == 0 {
		t.Error("a flood of other addresses set a locked one free")
	}
	now = now.Add(forgetFor + time.Second)
	if _, n := l.fail(locked); n != 1 {
		t.Errorf("%d failures remembered after an hour", n)
	}
}

func TestOrigin(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8::1": "2001:db8::", "fe80::1%eth0": "fe80::",
	} {
		if got := Origin(netip.MustParseAddr(in)).String(); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestFromRequest(t *testing.T) {
	for name, c := range map[string]struct {
		headers [][2]string
		raw     string
		carrier Carrier
		bad     bool
	}{
		"nothing":         {nil, "", None, false},
		"bearer":          {[][2]string{{"Authorization", "Bearer abc"}}, "abc", Header, false},
		"lower case":      {[][2]string{{"Authorization", "bearer abc"}}, "abc", Header, false},
		"basic":           {[][2]string{{"Authorization", "Basic abc"}}, "", Header, true},
		"no token":        {[][2]string{{"Authorization", "Bearer "}}, "", Header, true},
		"empty":           {[][2]string{{"Authorization", ""}}, "", Header, true},
		"two in one":      {[][2]string{{"Authorization", "Bearer abc, Bearer def"}}, "", Header, true},
		"two headers":     {[][2]string{{"Authorization", "Bearer abc"}, {"Authorization", "Bearer abc"}}, "", Header, true},
		"cookie":          {[][2]string{{"Cookie", "x=1; __Host-tidegate=abc"}}, "abc", Cookie, false},
		"other cookie":    {[][2]string{{"Cookie", "tidegate=abc"}}, "", None, false},
		"two cookies":     {[][2]string{{"Cookie", "__Host-tidegate=a; __Host-tidegate=b"}}, "", Cookie, true},
		"header wins":     {[][2]string{{"Cookie", "__Host-tidegate=a"}, {"Authorization", "Bearer b"}}, "b", Header, false},
		"bad header wins": {[][2]string{{"Cookie", "__Host-tidegate=a"}, {"Authorization", "Basic b"}}, "", Header, true},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		for _, h := range c.headers {
			r.Header.Add(h[0], h[1])
		}
		raw, carrier, err := FromRequest(r)
		if raw != c.raw || carrier != c.carrier || (err != nil) != c.bad {
			t.Errorf("%s: %q, %d, %v", name, raw, carrier, err)
		}
	}
}

func TestSameOrigin(t *testing.T) {
	for name, c := range map[string]struct {
		site, origin string
		want         bool
	}{
		"fetch metadata":       {"same-origin", "", true},
		"other site":           {"cross-site", "", false},
		"sibling":              {"same-site", "https://gate.example", false},
		"typed":                {"none", "", false},
		"old browser":          {"", "https://gate.example", true},
		"old browser, other":   {"", "https://evil.example", false},
		"plain http":           {"", "http://gate.example", false},
		"opaque origin":        {"", "null", false},
		"neither":              {"", "", false},
		"metadata beats it":    {"cross-site", "https://gate.example", false},
		"other port":           {"", "https://gate.example:8443", false},
		"case of the host":     {"", "https://GATE.example", true},
		"host within another":  {"", "https://gate.example.evil.example", false},
		"metadata without one": {"same-origin", "null", true},
	} {
		r := httptest.NewRequest(http.MethodPost, "https://gate.example/", nil)
		if c.site != "" {
			r.Header.Set("Sec-Fetch-Site", c.site)
		}
		if c.origin != "" {
			r.Header.Set("Origin", c.origin)
		}
		if got := SameOrigin(r); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestCookies(t *testing.T) {
	expires := time.Now().Add(time.Hour)
	c := SessionCookie("abc", expires)
	if !c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" || c.Value != "abc" || !c.Expires.Equal(expires) {
		t.Errorf("session cookie %v", c)
	}
	if c := ClearCookie(); c.MaxAge >= 0 || c.Value != "" || c.Name != CookieName || !c.Secure || c.Path != "/" {
		t.Errorf("clearing cookie %v", c)
	}
}
