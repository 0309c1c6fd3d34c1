package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/dbtest"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/token"
)

// maxTransfer is what the live page may load into an empty cache.
const maxTransfer = 200 << 10

// page drives the live page of a mesh.
type page struct {
	*rig.Browser
	t *testing.T
	m *mesh
}

func (p *page) open(path string) {
	p.t.Helper()
	p.Do(chromedp.Navigate(p.m.gateway.URL() + path))
}

func (p *page) login(c token.Claims) {
	p.t.Helper()
	p.open("/login")
	p.Do(chromedp.SetValue("#token", p.m.gateway.Token(p.t, c), chromedp.ByQuery))
	p.Click("form.card button.primary")
	p.Until(10*time.Second, `location.pathname === "/" && document.querySelector("#state")`)
}

func (p *page) logout() {
	p.t.Helper()
	p.Click(`form[action="/logout"] button`)
	p.Until(5*time.Second, `location.pathname === "/login"`)
}

// accessible runs axe-core on what is shown.
func (p *page) accessible(what string) {
	p.t.Helper()
	for _, v := range p.Axe() {
		p.t.Errorf("%s: axe-core %s: %s: %+v", what, v.ID, v.Help, v.Nodes)
	}
}

// quiet fails the test if the console has errors.
func (p *page) quiet() {
	p.t.Helper()
	for _, e := range p.Errors() {
		p.t.Errorf("the browser's console: %s", e)
	}
}

// TestFullBrowser uses the live page as people do, on all services with real traffic.
func TestFullBrowser(t *testing.T) {
	m := newMeshOn(t, dbtest.PostgreSQL, "TIDEGATE_ENFORCE_ALLOW_BROAD_USER_RULES=true") // its rule stops all clients
	p := &page{rig.NewBrowser(t, pki.FilesOf(m.certs, pki.Gateway).Cert), t, m}
	stop := background(m.link.Client(60, 7))
	defer stop()
	time.Sleep(2 * time.Second) // what is usual, for the detectors
	for _, part := range []struct {
		name string
		run  func(*testing.T, *page)
	}{
		{"log in", testLogin}, {"attack", testAttack}, {"rule", testRule}, {"panic", testPanic}, {"keyboard", testKeyboard},
		{"restart", testRestart}, {"session", testSession},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.run(t, &page{p.Browser, t, m}) }) {
			return
		}
	}
}

// testLogin: a wrong token is refused in words, a good one opens the page, which loads little.
func testLogin(t *testing.T, p *page) {
	p.open("/")
	p.Until(5*time.Second, `location.pathname === "/login"`)
	p.accessible("log-in")
	p.Screenshot("login")
	p.quiet()
	p.Do(chromedp.SetValue("#token", "nonsense", chromedp.ByQuery))
	p.Click("form.card button.primary")
	p.Until(5*time.Second, `document.querySelector("[role=alert]")`)
	p.accessible("refused log-in")
	_ = p.Errors() // the answer 401 is one
	p.login(token.Claims{Role: "admin", For: time.Hour})
	p.Do(network.ClearBrowserCache(), chromedp.Navigate("about:blank"))
	p.Transfer()
	p.open("/")
	p.Until(5*time.Second, `document.querySelectorAll("#pps canvas").length === 1 && document.querySelector("#pps-now").innerText !== "–"`)
	if n := p.Transfer(); n > maxTransfer || n < 10<<10 {
		t.Errorf("the live page loads %.0f bytes, want at most %d", n, maxTransfer)
	} else {
		t.Logf("transfer %.1f KiB (bar 200), first contentful paint %v (bar 500ms)", n/1024, p.FirstPaint())
	}
	for _, look := range []struct {
		name          string
		width, height int64
		scheme        string
	}{{"dark", 1280, 900, "dark"}, {"phone", 390, 844, "light"}, {"light", 1280, 900, "light"}} {
		p.Look(look.width, look.height, look.scheme)
		time.Sleep(300 * time.Millisecond)
		p.accessible("live page, " + look.name)
		p.Screenshot("live-" + look.name)
		var overflow bool
		p.Eval(`document.documentElement.scrollWidth > innerWidth`, &overflow)
		if overflow {
			t.Errorf("%s: the page is wider than the window", look.name)
		}
	}
	p.quiet()
}

// attack sends until the returned stop is called.
func (p *page) attack(kind string, seed uint64, pps int) (stop func()) {
	p.t.Helper()
	sender, err := p.m.link.Sender()
	if err != nil {
		p.t.Fatal(err)
	}
	frames, err := p.m.link.Attack(kind, seed)
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	done := make(chan struct{})
	go func() { defer close(done); _, _ = sender.Send(ctx, frames.Next, pps, 0) }()
	return func() { cancel(); <-done; _ = sender.Close() }
}

// testAttack: the demo's attack appears with its times; its page tells what happened.
func testAttack(t *testing.T, p *page) {
	stop := p.attack(loadgen.SYNFlood, 21, 50_000)
	defer stop()
	p.Until(15*time.Second, `document.querySelector("#attacks tbody a")`)
	p.Until(15*time.Second, `document.querySelector("#attacks .tag.good")`)
	row := p.Text("#attacks tbody tr")
	if !strings.Contains(row, "SYN flood") && !strings.Contains(row, "syn flood") || !strings.Contains(row, loadgen.VictimAddr.String()) {
		t.Errorf("the attack's row: %q", row)
	}
	p.Until(5*time.Second, `document.querySelector("#legend [data-line=drop]").cells[1].innerText.includes("k")`)
	p.accessible("live page under attack")
	p.Look(1280, 1000, "dark")
	time.Sleep(8 * time.Second) // the picture shows a while of it
	p.Screenshot("attack")
	p.Look(1280, 900, "light")
	p.Click("#attacks tbody a")
	p.Until(5*time.Second, `location.pathname.startsWith("/attacks/") && document.querySelectorAll("tbody tr").length >= 3`)
	p.accessible("attack's page")
	p.Screenshot("attack-detail")
	p.quiet()
	var size int
	p.Eval(`fetch(document.querySelector("a[download]").href).then(r => r.ok ? r.arrayBuffer() : new ArrayBuffer(0)).then(b => b.byteLength)`, &size)
	if size < 100 {
		t.Errorf("the capture has %d bytes", size)
	}
	stop()
	p.open("/attacks/none")
	p.Until(5*time.Second, `document.querySelector("[role=alert]")`)
	p.accessible("error page")
	_ = p.Errors() // the answer 404 is one
	p.open("/")
	p.Until(30*time.Second, `document.querySelector("#attacks .empty")`)
	p.quiet()
}

// benign is how many benign frames arrived at the victim within d.
func (p *page) benign(d time.Duration) uint64 {
	p.t.Helper()
	before, err := p.m.link.Counter.Counts()
	if err != nil {
		p.t.Fatal(err)
	}
	time.Sleep(d)
	after, err := p.m.link.Counter.Counts()
	if err != nil {
		p.t.Fatal(err)
	}
	return after.Benign - before.Benign
}

func (p *page) addRule(values map[string]string) {
	p.t.Helper()
	p.Click(`[data-open="rule-dialog"]`)
	p.Do(chromedp.WaitVisible("#rule-form", chromedp.ByQuery))
	for id, v := range values {
		p.Do(chromedp.SetValue("#r-"+id, v, chromedp.ByQuery))
	}
	p.Click(`#rule-form button[hx-post]`)
	p.Until(10*time.Second, `document.querySelector("#preview .notice")`)
	p.accessible("rule dialog with a preview")
	p.Click(`#rule-form button.primary`)
	p.Until(10*time.Second, `document.querySelector("#preview .notice.good").innerText.startsWith("Added")`)
	p.Click(`#rule-form [data-close]`)
}

// testRule: a rule added in the page stops the victim's packets; revoked, they flow again.
func testRule(t *testing.T, p *page) {
	if n := p.benign(time.Second); n < 50 {
		t.Fatalf("%d benign packets a second before the rule", n)
	}
	p.addRule(map[string]string{"action": "drop", "src": loadgen.BenignPrefix.String(), "comment": "by a browser"})
	p.Screenshot("rule-added")
	if n := p.benign(2 * time.Second); n != 0 {
		t.Errorf("%d packets passed the rule", n)
	}
	p.Until(5*time.Second, `[...document.querySelectorAll("#rules tbody tr")].some(r => r.innerText.includes("by a browser") && r.innerText.includes("active"))`)
	p.Click(`#rules button[id^=revoke-]`)
	p.Do(chromedp.WaitVisible("#confirm", chromedp.ByQuery))
	p.accessible("confirmation")
	time.Sleep(3 * time.Second) // who reads it takes longer than the table's renewal
	p.Click(`#confirm button[value=yes]`)
	p.Until(10*time.Second, `document.querySelector("#rule-result .notice.good")`)
	err := rig.Eventually(10*time.Second, func() error {
		if n := p.benign(time.Second); n < 50 {
			return fmt.Errorf("%d benign packets a second after the rule was revoked", n)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	p.quiet()
}

// testPanic: every drop goes, automatic ones are held, and come back when panic is released.
func testPanic(t *testing.T, p *page) {
	stop := p.attack(loadgen.AmpDNS, 22, 20_000)
	defer stop()
	p.Until(15*time.Second, `document.querySelector("#attacks .tag.good")`)
	p.Click("#panic-on")
	p.Do(chromedp.WaitVisible("#panic-dialog", chromedp.ByQuery))
	p.accessible("panic dialog")
	p.Do(chromedp.SetValue("#panic-reason", "a test", chromedp.ByQuery))
	p.Click("#panic-dialog button[type=submit]")
	p.Until(5*time.Second, `document.querySelector("#panic-result .notice")`)
	before, err := p.m.link.Counter.Counts()
	if err != nil {
		t.Fatal(err)
	}
	p.Until(5*time.Second, `document.querySelector("#panic-off")`)
	time.Sleep(time.Second)
	after, err := p.m.link.Counter.Counts()
	if err != nil {
		t.Fatal(err)
	}
	if n := after.Attack - before.Attack; n < 10_000 {
		t.Errorf("%d attack packets reached the victim in a second of panic", n)
	}
	p.Click("#panic-dialog [data-close]")
	p.Until(5*time.Second, `document.querySelector("#notices .bad")`)
	p.accessible("live page in panic")
	p.Screenshot("panic")
	p.Click("#panic-off")
	p.Do(chromedp.WaitVisible("#release-dialog", chromedp.ByQuery))
	p.Click("#release-dialog button[type=submit]")
	p.Until(5*time.Second, `document.querySelector("#release-result .notice.good")`)
	p.Click("#release-dialog [data-close]")
	err = rig.Eventually(10*time.Second, func() error {
		a, err := p.m.link.Counter.Counts()
		if err != nil {
			return err
		}
		time.Sleep(time.Second)
		b, err := p.m.link.Counter.Counts()
		if n := b.Attack - a.Attack; err == nil && n > 500 {
			err = fmt.Errorf("%d attack packets a second after panic", n)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	p.quiet()
}

// testKeyboard reaches a dialog and leaves it without a mouse.
func testKeyboard(t *testing.T, p *page) {
	p.open("/")
	p.Do(chromedp.KeyEvent(kb.Tab))
	var skip string
	p.Eval(`document.activeElement.className`, &skip)
	if skip != "skip" {
		t.Errorf("the first stop of the keyboard is %q, want the link to the content", skip)
	}
	var at string
	for range 40 {
		p.Do(chromedp.KeyEvent(kb.Tab))
		if p.Eval(`document.activeElement.id`, &at); at == "panic-on" {
			break
		}
	}
	if at != "panic-on" {
		t.Fatal("panic is not reached by the keyboard")
	}
	p.Do(chromedp.KeyEvent(kb.Enter))
	p.Until(3*time.Second, `document.querySelector("#panic-dialog").open`)
	p.Do(chromedp.KeyEvent(kb.Escape))
	p.Until(3*time.Second, `!document.querySelector("#panic-dialog").open`)
	p.quiet()
}

// testRestart: while the gateway is away the page says so; then it goes on by itself, with what happened meanwhile.
func testRestart(t *testing.T, p *page) {
	p.open("/")
	p.Until(10*time.Second, `document.querySelector("#pps-now").innerText !== "–"`)
	stop := p.attack(loadgen.UDPFlood, 23, 20_000)
	defer stop()
	p.Until(15*time.Second, `document.querySelector("#announce").innerText.startsWith("Attack: udp flood")`)
	p.quiet()
	p.Eval(`window.unbroken = true`, nil)
	if err := p.m.gatewayProc.Stop(15 * time.Second); err != nil {
		t.Errorf("the gateway ended with %v", err)
	}
	p.Until(15*time.Second, `!document.querySelector("#lost").hidden`)
	p.Screenshot("gateway-away")
	stop() // its end comes while nobody tells the page
	db := p.m.open(t)
	err := rig.Eventually(20*time.Second, func() error {
		if count(t, db, "SELECT count(*) FROM attacks WHERE type = 'udp_flood' AND ended_ns > 0") == 0 {
			return fmt.Errorf("the attack has not ended")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	p.m.gatewayProc.Restart()
	p.Until(20*time.Second, `document.querySelector("#lost").hidden`)
	p.Until(10*time.Second, `document.querySelector("#announce").innerText.startsWith("Attack ended: udp flood")`)
	p.Until(10*time.Second, `window.unbroken`) // it was not loaded again
	_ = p.Errors()                             // the connections that failed
}

// testSession: when the token ends the page says so, and nothing is shown without another.
func testSession(t *testing.T, p *page) {
	p.logout()
	p.login(token.Claims{Role: "viewer", Subject: "short", For: 6 * time.Second})
	var buttons int
	p.Eval(`document.querySelectorAll("#panic-on, [data-open=rule-dialog], [id^=revoke-]").length`, &buttons)
	if buttons != 0 {
		t.Errorf("a viewer sees %d buttons that change something", buttons)
	}
	p.Until(20*time.Second, `!document.querySelector("#expired").hidden`)
	p.accessible("page of an ended session")
	_ = p.Errors()
	// The clocks' tolerance is over too.
	err := rig.Eventually(45*time.Second, func() error {
		p.open("/")
		if !strings.HasPrefix(p.Text("h1"), "Log in") {
			return fmt.Errorf("the page is still shown: %q", p.Text("h1"))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	p.login(token.Claims{Role: "operator", For: time.Hour})
	p.logout()
	var status int
	p.Eval(`fetch("/api/v1/status").then(r => r.status)`, &status)
	if status != http.StatusUnauthorized {
		t.Errorf("after the log-out REST answers %d", status)
	}
}
