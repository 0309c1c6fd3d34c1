// Package feed reads address lists from HTTPS servers, which may be slow, broken or hostile: time and size are bounded.
package feed

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"
)

// Limits of one reading.
const (
	DefaultTimeout = time.Minute
	headerTimeout  = 15 * time.Second
	maxRedirects   = 5
)

// Reader reads lists. It may be used by any number of goroutines.
type Reader struct {
	client  *http.Client
	timeout time.Duration
	limit   int64
}

// New trusts the system's authorities and, if it is not empty, those of the PEM file ca. A reading lasts at most timeout
// and gives at most limit bytes.
func New(ca string, timeout time.Duration, limit int64) (*Reader, error) {
	var roots *x509.CertPool
	if ca != "" {
		pem, err := os.ReadFile(ca) //nolint:gosec // the operator's file
		if err != nil {
			return nil, fmt.Errorf("the authority of list servers: %w", err)
		}
		if roots, err = x509.SystemCertPool(); err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("the authority of list servers: %s holds no certificate in PEM form", ca)
		}
	}
	return &Reader{timeout: timeout, limit: limit, client: &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true,
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			TLSHandshakeTimeout: headerTimeout, ResponseHeaderTimeout: headerTimeout,
			MaxResponseHeaderBytes: 64 << 10, IdleConnTimeout: time.Minute, MaxIdleConns: 8,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects {
				return fmt.Errorf("more than %d redirects", maxRedirects)
			}
			if r.URL.Scheme != "https" {
				return errors.New("it redirects to an address without HTTPS")
			}
			return nil
		},
	}}, nil
}

// CheckURL says what is wrong with the address of a list.
func CheckURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return errors.New("it is no URL")
	case u.Scheme != "https" || u.Host == "":
		return errors.New("give it as https://HOST/PATH: a list that anybody on the way can change is a way in")
	case u.User != nil:
		return errors.New("leave user and password out: every viewer sees it")
	}
	return nil
}

// Read fetches a list. With the validator of an earlier answer, a list that has not changed is (nil, "", nil). Errors
// are sentences for users.
func (r *Reader) Read(ctx context.Context, address, validator string) (text []byte, newValidator string, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return nil, "", errors.New("the URL cannot be asked for")
	}
	req.Header.Set("User-Agent", "tidegate")
	req.Header.Set("Accept", "text/plain, */*;q=0.5")
	if validator != "" {
		req.Header.Set("If-None-Match", validator)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, "", r.explain(err)
	}
	defer func() { _ = resp.Body.Close() }() // what was read counts
	if validator != "" && resp.StatusCode == http.StatusNotModified {
		return nil, "", nil
	}
	if resp.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("the server answered %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	if resp.ContentLength > r.limit {
		return nil, "", r.tooLarge()
	}
	text, err = io.ReadAll(io.LimitReader(resp.Body, r.limit+1)) // also of what was compressed
	if err != nil {
		return nil, "", r.explain(err)
	}
	if int64(len(text)) > r.limit {
		return nil, "", r.tooLarge()
	}
	if v := resp.Header.Get("Etag"); len(v) <= 256 {
		newValidator = v
	}
	if text == nil {
		text = []byte{}
	}
	return text, newValidator, nil
}

func (r *Reader) tooLarge() error {
	return fmt.Errorf("the answer is larger than %d MiB", r.limit>>20)
}

func (r *Reader) explain(err error) error {
	var of *url.Error
	if errors.As(err, &of) {
		err = of.Err // its text repeats the address
	}
	var cert *tls.CertificateVerificationError
	switch {
	case errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err):
		return fmt.Errorf("the server did not answer, or not to the end, in time (%s at most)", r.timeout)
	case errors.As(err, &cert):
		return fmt.Errorf("the server's certificate is not trusted (%w): name its authority to the gateway with --list-ca", cert.Err)
	}
	return fmt.Errorf("it cannot be read: %w", err)
}
