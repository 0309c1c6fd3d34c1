// Package client speaks the gateway's REST API for programs, with the objects of libs/api.
package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

const (
	defaultTimeout = 10 * time.Second
	maxAnswer      = 16 << 20 // bytes of one JSON answer
	maxProblem     = 64 << 10

	attempts   = 4
	firstPause = 250 * time.Millisecond
	// maxPause is the longest Retry-After that a call sits out; a longer one is the caller's to wait for.
	maxPause = 10 * time.Second
)

// Options say where the gateway is and who asks.
type Options struct {
	URL     string         // https://host:port
	Token   string         // empty: requests go without one
	CA      *x509.CertPool // authorities of the gateway's certificate; nil: CAFile, else the system's
	CAFile  string         // PEM
	Timeout time.Duration  // of one attempt; 0: 10 s. Streams and captures have none as long as bytes come.
}

// Client asks one gateway. It may be used by any number of goroutines.
//
// Errors are an *api.Problem (errors.As), which the gateway answered, or one sentence about why there is no answer.
type Client struct {
	base    *url.URL
	token   string
	timeout time.Duration
	http    *http.Client
	slow    *http.Client  // without a limit of its own for the begin of an answer
	first   time.Duration // pause before the second attempt
	idle    time.Duration // of a stream
}

// New checks the options; nothing is sent yet.
func New(o Options) (*Client, error) {
	base, err := parseURL(o.URL)
	if err != nil {
		return nil, err
	}
	pool := o.CA
	if pool == nil && o.CAFile != "" {
		b, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("the gateway's authority: %w", err)
		}
		if pool, err = poolOf(b); err != nil {
			return nil, fmt.Errorf("%s: %w", o.CAFile, err)
		}
	}
	if strings.ContainsFunc(o.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("the token has spaces or characters that no token has: copy it again")
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	by := func(answer time.Duration) *http.Client {
		return &http.Client{
			Transport: &http.Transport{
				Proxy:               http.ProxyFromEnvironment,
				DialContext:         (&net.Dialer{Timeout: o.Timeout}).DialContext,
				TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool},
				TLSHandshakeTimeout: o.Timeout, ResponseHeaderTimeout: answer,
				ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute,
			},
			// The API has no redirects: following one could send the token elsewhere.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return &Client{base: base, token: o.Token, timeout: o.Timeout, first: firstPause, idle: streamIdle, http: by(o.Timeout), slow: by(0)}, nil
}

// Close gives back idle connections.
func (c *Client) Close() {
	c.http.CloseIdleConnections()
	c.slow.CloseIdleConnections()
}

// URL is the gateway's address.
func (c *Client) URL() string { return c.base.String() }

func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("gateway %q: give its address as https://HOST:PORT", s)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

func poolOf(pem []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("there is no certificate in PEM form in it")
	}
	return pool, nil
}

// request is one call, whatever number of attempts it takes.
type request struct {
	method, path string
	query        url.Values
	body         any           // nil: none
	text         []byte        // nil: none; in the place of body
	limit        time.Duration // of one attempt; 0: the client's
	revision     string        // of the rule to change; empty: any
	accept       string        // beside JSON
}

// call sends a request and decodes its answer into out, unless that is nil or the answer has no body. A write is
// tried again when the gateway or a service is not ready or the answer did not come in time: the key that all
// attempts share lets the gateway do it once.
func (c *Client) call(ctx context.Context, q request, out any) error {
	var body []byte
	if q.body != nil {
		var err error
		if body, err = json.Marshal(q.body); err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
	}
	if q.text != nil {
		body = q.text
	}
	write := q.method != http.MethodGet
	key := ""
	if write {
		key = rand.Text()
	}
	pause := c.first
	for attempt := 1; ; attempt++ {
		wait, err := c.once(ctx, q, body, key, out)
		if err == nil || attempt == attempts || ctx.Err() != nil || !again(err, write) {
			return err
		}
		if wait > maxPause {
			return err
		}
		if wait == 0 {
			wait = pause/2 + mathrand.N(pause/2+1)
			pause *= 2
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// again tells whether another attempt may help. A gateway that refuses connections is not waited for.
func again(err error, write bool) bool {
	var p *api.Problem
	if errors.As(err, &p) {
		switch p.Status {
		case http.StatusTooManyRequests:
			return p.Reason == "rate_limited"
		case http.StatusConflict: // an attempt whose answer was lost
			return p.Reason == api.ReasonRunning
		case http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return write
		}
		return false
	}
	var broken *brokenError
	return write && errors.As(err, &broken)
}

// once makes one attempt. wait is the answer's Retry-After, 0 without one.
func (c *Client) once(ctx context.Context, q request, body []byte, key string, out any) (wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(q.limit, c.timeout))
	defer cancel()
	resp, err := c.send(ctx, q, body, key)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return retryAfter(resp.Header), c.problem(resp)
	}
	if out == nil || resp.StatusCode == http.StatusNoContent {
		return 0, nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return 0, &brokenError{fmt.Errorf("the answer of the gateway at %s broke off: %w", c.base, err)}
	}
	if len(b) > maxAnswer {
		return 0, fmt.Errorf("the answer of the gateway at %s is above %d MiB: ask for less at once", c.base, maxAnswer>>20)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return 0, fmt.Errorf("what answers at %s is no Tidegate gateway, or one of another version: %w", c.base, err)
	}
	return 0, nil
}

// send makes a request; every answer of HTTP is one, whatever its status.
func (c *Client) send(ctx context.Context, q request, body []byte, key string) (*http.Response, error) {
	// Joined as text: resolving would let an id of dots climb out of its route.
	u, err := url.Parse(c.base.String() + apiPath + q.path)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	u.RawQuery = q.query.Encode()
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, q.method, u.String(), reader)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	r.Header.Set("Accept", "application/json, application/problem+json")
	if q.accept != "" {
		r.Header.Set("Accept", q.accept+", application/problem+json")
	}
	r.Header.Set("User-Agent", "tidegate")
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if q.text != nil {
		r.Header.Set("Content-Type", api.ListType)
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	if q.revision != "" {
		r.Header.Set("If-Match", strconv.Quote(q.revision))
	}
	do := c.http.Do
	if q.limit > 0 { // the context has it
		do = c.slow.Do
	}
	resp, err := do(r)
	if err != nil {
		return nil, c.unanswered(err)
	}
	return resp, nil
}

// brokenError is a connection that was there and gave no whole answer: the request may have been carried out.
type brokenError struct{ error }

func (e *brokenError) Unwrap() error { return e.error }

// UntrustedError is a certificate of the gateway that cannot be accepted.
type UntrustedError struct {
	URL string
	err error
}

// Error says what to do.
func (e *UntrustedError) Error() string {
	var (
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
	)
	switch {
	case errors.As(e.err, &name):
		return fmt.Sprintf("the certificate of %s is for other names: use one of them, or renew it with `tidegate certs --renew --host NAME` (%v)", e.URL, e.err)
	case errors.As(e.err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("the certificate of %s is not valid now: check this machine's clock, or renew it with `tidegate certs` (%v)", e.URL, e.err)
	}
	return fmt.Sprintf("the certificate of %s is not trusted: name its authority with --ca FILE; `tidegate certs` makes it as ca.pem in its folder "+
		"(/etc/tidegate/certs), `tidegate run` in certs of its data folder (/var/lib/tidegate/certs) (%v)", e.URL, e.err)
}

// Unwrap is the error of crypto/x509.
func (e *UntrustedError) Unwrap() error { return e.err }

// unanswered turns the error of a request without an answer into a sentence.
func (c *Client) unanswered(err error) error {
	var (
		ofURL    *url.Error
		cert     *tls.CertificateVerificationError
		plain    tls.RecordHeaderError
		op       *net.OpError
		resolver *net.DNSError
	)
	if errors.As(err, &ofURL) {
		err = ofURL.Err // its text repeats method and address
	}
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &cert):
		return &UntrustedError{URL: c.base.String(), err: cert.Err}
	case errors.As(err, &plain), errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("what listens at %s does not speak HTTPS: check the port (the gateway's is 8080)", c.base)
	case errors.As(err, &resolver):
		return fmt.Errorf("the gateway's host cannot be found: check the address %s: %w", c.base, err)
	case errors.As(err, &op) && op.Op == "dial":
		return fmt.Errorf("the gateway is not running at %s: start it (tidegate run), or name its address with --gateway: %w", c.base, err)
	case errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err):
		return &brokenError{fmt.Errorf("the gateway at %s did not answer in time: %w", c.base, err)}
	}
	return &brokenError{fmt.Errorf("the gateway at %s broke the connection: %w", c.base, err)}
}

// problem reads an answer that is an error.
func (c *Client) problem(resp *http.Response) error {
	p := &api.Problem{}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	if err != nil || kind != "application/problem+json" || json.Unmarshal(b, p) != nil {
		*p = api.Problem{Detail: fmt.Sprintf("%s answered %q without saying why: is it a Tidegate gateway, or is a proxy in between?", c.base, resp.Status)}
	}
	p.Status = resp.StatusCode
	if p.Title == "" {
		p.Title = http.StatusText(p.Status)
	}
	if p.Status == http.StatusUnauthorized {
		return fmt.Errorf("%w: log in again with `tidegate login --gateway %s`", p, c.base)
	}
	return p
}

// retryAfter reads seconds or a date (RFC 9110 section 10.2.3); 0 where there is none.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}
