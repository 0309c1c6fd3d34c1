package rig

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// Browser is a tab of a real Chromium with a profile of its own.
type Browser struct {
	t   testing.TB
	ctx context.Context

	mu       sync.Mutex
	errors   []string
	transfer float64 // bytes over the network, headers included
}

// NewBrowser starts Chromium; only the certificate in file is trusted beside the public ones. It ends with the test.
func NewBrowser(t testing.TB, certificate string) *Browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	Need(t, err == nil, "chromium (make setup)")
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("ignore-certificate-errors-spki-list", spki(t, certificate)), chromedp.WindowSize(1280, 900))
	alloc, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(stop)
	ctx, cancel := chromedp.NewContext(alloc)
	t.Cleanup(func() {
		end, done := context.WithTimeout(ctx, 10*time.Second)
		defer done()
		_ = chromedp.Cancel(end) // waits for the process
		cancel()
	})
	b := &Browser{t: t, ctx: ctx}
	chromedp.ListenTarget(ctx, b.event)
	b.Do(network.Enable(), runtime.Enable(), log.Enable())
	return b
}

// spki is the hash of a certificate's public key, by which Chromium is told to accept it.
func spki(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		t.Fatalf("%s holds no certificate", file)
		return ""
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}

func (b *Browser) event(ev any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := ev.(type) {
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.APITypeError || e.Type == runtime.APITypeAssert {
			var parts []string
			for _, a := range e.Args {
				parts = append(parts, string(a.Value)+a.Description)
			}
			b.errors = append(b.errors, strings.Join(parts, " "))
		}
	case *runtime.EventExceptionThrown:
		b.errors = append(b.errors, e.ExceptionDetails.Error())
	case *log.EventEntryAdded:
		if e.Entry.Level == log.LevelError {
			b.errors = append(b.errors, e.Entry.Text+" "+e.Entry.URL)
		}
	case *network.EventLoadingFinished:
		b.transfer += e.EncodedDataLength
	}
}

// Errors are the console's errors, uncaught exceptions and failed loads since the last call.
func (b *Browser) Errors() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.errors
	b.errors = nil
	return out
}

// Transfer is how many bytes finished loading since the last call.
func (b *Browser) Transfer() float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.transfer
	b.transfer = 0
	return out
}

// Try runs actions within limit.
func (b *Browser) Try(limit time.Duration, actions ...chromedp.Action) error {
	ctx, cancel := context.WithTimeout(b.ctx, limit)
	defer cancel()
	return chromedp.Run(ctx, actions...)
}

// Do runs actions within 20 s, or fails the test.
func (b *Browser) Do(actions ...chromedp.Action) {
	b.t.Helper()
	// The first run starts the browser, which must outlive this call's deadline.
	done := make(chan error, 1)
	go func() { done <- chromedp.Run(b.ctx, actions...) }()
	select {
	case err := <-done:
		if err != nil {
			b.t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		b.Screenshot("stuck")
		b.t.Fatal("the page did not get there within 20 s; see the screenshot")
	}
}

// Click clicks on an element. The page may put a new one in its place meanwhile: then it tries again.
func (b *Browser) Click(selector string) {
	b.t.Helper()
	err := Eventually(20*time.Second, func() error { return b.Try(5*time.Second, chromedp.Click(selector, chromedp.ByQuery)) })
	if err != nil {
		b.Screenshot("stuck")
		b.t.Fatalf("click on %s: %v", selector, err)
	}
}

// Text is what an element shows, "" when it is not there.
func (b *Browser) Text(selector string) string {
	b.t.Helper()
	var out string
	b.Eval(fmt.Sprintf(`(document.querySelector(%q) || {}).innerText || ""`, selector), &out)
	return strings.TrimSpace(out)
}

// Eval evaluates an expression, a promise too, in the page.
func (b *Browser) Eval(expression string, out any) {
	b.t.Helper()
	await := func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }
	if err := b.Try(30*time.Second, chromedp.Evaluate(expression, out, await)); err != nil {
		b.t.Fatalf("%.80s: %v", expression, err)
	}
}

// Until waits until an expression is true.
func (b *Browser) Until(limit time.Duration, expression string) {
	b.t.Helper()
	err := Eventually(limit, func() error {
		var ok bool
		if err := b.Try(5*time.Second, chromedp.Evaluate("!!("+expression+")", &ok)); err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("not true in the page after %v: %s", limit, expression)
		}
		return nil
	})
	if err != nil {
		b.Screenshot("stuck")
		b.t.Fatal(err)
	}
}

// Artifact is the path of a file that a test leaves for people to look at.
func Artifact(t testing.TB, name string) string {
	t.Helper()
	dir := filepath.Join(root(t), "artifacts")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// Screenshot keeps a picture of the window as an artifact.
func (b *Browser) Screenshot(name string) {
	b.t.Helper()
	var png []byte
	if err := b.Try(10*time.Second, chromedp.CaptureScreenshot(&png)); err != nil {
		b.t.Errorf("screenshot %s: %v", name, err)
		return
	}
	if err := os.WriteFile(Artifact(b.t, name+".png"), png, 0o600); err != nil {
		b.t.Error(err)
	}
}

// Look sets the window's size and the colour scheme: light or dark.
func (b *Browser) Look(width, height int64, scheme string) {
	b.t.Helper()
	b.Do(chromedp.EmulateViewport(width, height),
		emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}))
}

// Violation is a rule of axe-core that the page breaks.
type Violation struct {
	ID    string `json:"id"`
	Help  string `json:"help"`
	Nodes []struct {
		HTML string `json:"html"`
	} `json:"nodes"`
}

// Axe runs axe-core on what the page shows.
func (b *Browser) Axe() []Violation {
	b.t.Helper()
	script, err := os.ReadFile(filepath.Join(root(b.t), "e2e", "browser", "testdata", "axe.min.js"))
	if err != nil {
		b.t.Fatal(err)
	}
	var loaded bool
	b.Eval(`typeof axe === "object"`, &loaded)
	if !loaded {
		b.Eval(string(script)+"\n;true", &loaded)
	}
	var result string
	b.Eval(`axe.run(document, {resultTypes: ["violations"]}).then(r => JSON.stringify({v: r.violations, n: r.passes.length}))`, &result)
	var r struct {
		V []Violation `json:"v"`
		N int         `json:"n"`
	}
	if err := json.Unmarshal([]byte(result), &r); err != nil {
		b.t.Fatal(err)
	}
	if r.N < 5 {
		b.t.Errorf("axe-core checked %d rules only: the page is not what it should be", r.N)
	}
	return r.V
}

// FirstPaint is the first contentful paint of the page, from the start of its navigation.
func (b *Browser) FirstPaint() time.Duration {
	b.t.Helper()
	var ms float64
	b.Eval(`(performance.getEntriesByName("first-contentful-paint")[0] || {startTime: -1}).startTime`, &ms)
	if ms < 0 {
		b.t.Fatal("nothing was painted")
	}
	return time.Duration(ms * float64(time.Millisecond))
}
