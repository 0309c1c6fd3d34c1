package hook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// The headers and the signature are those of Standard Webhooks 1.0 (standardwebhooks.com), so that receivers can check
// them with a library.
const (
	headerID        = "webhook-id"
	headerTimestamp = "webhook-timestamp"
	headerSignature = "webhook-signature"

	secretPrefix = "whsec_" //nolint:gosec // a prefix, no secret
	secretMin    = 24
	secretMax    = 64

	answerBytes   = 4096 // of an answer that are read
	retryAfterMax = 5 * time.Minute
)

// webhook posts events to a URL.
type webhook struct {
	url, shown string // shown: without what only the receiver should know, which is often in the path
	secretFile string
	limit      time.Duration
	client     *http.Client
	agent      string
}

func newWebhook(raw, secretFile, ca string, limit time.Duration) (*webhook, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("the URL of a webhook cannot be read")
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		if tlsConfig.RootCAs, err = readPool(ca); err != nil {
			return nil, err
		}
	}
	version, _ := telemetry.Build()
	return &webhook{
		url: raw, shown: u.Scheme + "://" + u.Host, secretFile: secretFile, limit: limit, agent: "tidegate/" + version,
		client: &http.Client{
			Transport: &http.Transport{
				Proxy: http.ProxyFromEnvironment, TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true,
				MaxIdleConns: 1, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: limit,
				DialContext: (&net.Dialer{Timeout: limit, KeepAlive: 15 * time.Second}).DialContext,
			},
			// A signed event is not taken to an address that the operator did not name.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

func (w *webhook) send(ctx context.Context, e *event) error {
	secrets, err := readSecrets(w.secretFile) // each time: a secret can be exchanged without a restart
	if err != nil {
		return &failure{reason: "secret", err: err}
	}
	run, cancel := attempt(ctx, w.limit)
	defer cancel()
	req, err := http.NewRequestWithContext(run, http.MethodPost, w.url, bytes.NewReader(e.body))
	if err != nil {
		return &failure{reason: "request", err: fmt.Errorf("post to %s: the URL cannot be used", w.shown)}
	}
	now := time.Now()
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", w.agent)
	req.Header.Set(headerID, e.id)
	req.Header.Set(headerTimestamp, strconv.FormatInt(now.Unix(), 10))
	req.Header.Set(headerSignature, sign(secrets, e.id, now, e.body))
	resp, err := w.client.Do(req)
	if err != nil {
		return w.explain(err)
	}
	defer func() { _ = resp.Body.Close() }() // nothing more is wanted of it
	text, _ := io.ReadAll(io.LimitReader(resp.Body, answerBytes))
	return w.judge(resp, text)
}

// judge says what an answer means.
func (w *webhook) judge(resp *http.Response, text []byte) error {
	code := resp.StatusCode
	if code >= 200 && code < 300 {
		return nil
	}
	err := fmt.Errorf("post to %s: the answer is %s%s", w.shown, resp.Status, shorten(text))
	switch {
	case code == http.StatusUnprocessableEntity || code == http.StatusRequestEntityTooLarge:
		return &refusedError{err}
	case code < 400:
		return &failure{reason: "redirect", err: fmt.Errorf("%w: redirects are not followed, name the right URL", err)}
	}
	f := &failure{reason: "status_" + strconv.Itoa(code/100) + "xx", err: err}
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 {
		f.after = min(time.Duration(min(n, 3600))*time.Second, retryAfterMax)
	}
	return f
}

// explain sorts errors of the connection. The client's error repeats the URL, password included, so only its cause is kept.
func (w *webhook) explain(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	f := &failure{reason: "connect", err: fmt.Errorf("post to %s: %w", w.shown, err)}
	var (
		timeout     net.Error
		certificate *tls.CertificateVerificationError
		record      tls.RecordHeaderError
		alert       tls.AlertError
	)
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		f.reason = "timeout"
		f.err = fmt.Errorf("post to %s: no answer within %s", w.shown, w.limit)
	case errors.As(err, &certificate), errors.As(err, &record), errors.As(err, &alert):
		f.reason = "tls"
	}
	return f
}

// sign makes the signatures with each secret, the newest first: HMAC-SHA256 over ID.TIMESTAMP.BODY.
func sign(secrets [][]byte, id string, at time.Time, body []byte) string {
	out := make([]string, 0, len(secrets))
	for _, s := range secrets {
		mac := hmac.New(sha256.New, s)
		_, _ = fmt.Fprintf(mac, "%s.%d.", id, at.Unix()) // a hash takes everything
		_, _ = mac.Write(body)
		out = append(out, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return strings.Join(out, " ")
}

// readSecrets reads a file of one secret a line; empty lines are skipped.
func readSecrets(path string) ([][]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("webhook secret: %w (make one: echo %s$(openssl rand -base64 32) > FILE)", err, secretPrefix)
	}
	var out [][]byte
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		coded, ok := strings.CutPrefix(line, secretPrefix)
		secret, err := base64.StdEncoding.DecodeString(coded)
		if !ok || err != nil || len(secret) < secretMin || len(secret) > secretMax {
			return nil, fmt.Errorf("webhook secret %s: line %d is not %s and %d to %d bytes in base64", path, i+1, secretPrefix, secretMin, secretMax)
		}
		out = append(out, secret)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("webhook secret %s is empty (make one: echo %s$(openssl rand -base64 32) > %s)", path, secretPrefix, path)
	}
	return out, nil
}

func readPool(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("authority of the webhooks: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("authority of the webhooks: %s holds no certificate", path)
	}
	return pool, nil
}

// shorten makes what a receiver or a program says fit for a log line: its last 200 bytes, in one line.
func shorten(text []byte) string {
	s := strings.Join(strings.Fields(strings.ToValidUTF8(string(text), "?")), " ")
	if s == "" {
		return ""
	}
	if len(s) > 200 {
		s = "…" + strings.ToValidUTF8(s[len(s)-200:], "")
	}
	return ": " + s
}
