package auth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"
)

const (
	maxKeySet    = 1 << 20 // bytes
	fetchTimeout = 5 * time.Second
	filePoll     = 2 * time.Second
	retryEvery   = 5 * time.Second  // while there is no key set
	demandEvery  = 10 * time.Second // between reads that unknown key ids ask for
)

// source reads the key set from where it is published, regularly and on demand. read and note are called by one
// goroutine at a time.
type source struct {
	url    string
	file   string
	every  time.Duration
	client *http.Client
	last   [sha256.Size]byte // of the content in use
	has    bool

	wake chan struct{}
	mu   sync.Mutex
	err  error
	// One read answers all that wait for it.
	flight    chan struct{}
	demanded  time.Time
	demandGap time.Duration
}

// checkURL allows plain http on loopback only: who can change the key set can make tokens.
func checkURL(u *url.URL) error {
	if u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return fmt.Errorf("key set URL %q: use https://host/path", u.Redacted())
	}
	if u.Scheme == "https" || u.Hostname() == "localhost" {
		return nil
	}
	if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("key set URL %q: plain http is allowed on loopback only, use https", u.Redacted())
}

func newSource(cfg Config) (*source, error) {
	s := &source{url: cfg.JWKSURL, file: cfg.JWKSFile, every: cfg.Refresh, wake: make(chan struct{}, 1), demandGap: demandEvery}
	if s.url == "" {
		s.every, s.demandGap = filePoll, time.Second
		return s, nil
	}
	files := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.JWKSCA != "" {
		pem, err := os.ReadFile(cfg.JWKSCA)
		if err != nil {
			return nil, fmt.Errorf("authority of the key set's server: %w", err)
		}
		files.RootCAs = x509.NewCertPool()
		if !files.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("authority file %s holds no PEM certificate", cfg.JWKSCA)
		}
	}
	s.client = &http.Client{
		Timeout: fetchTimeout,
		// A connection of its own each time: reads are minutes apart.
		Transport: &http.Transport{TLSClientConfig: files, Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, ForceAttemptHTTP2: true},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) >= 3 {
				return errors.New("too many redirects")
			}
			return checkURL(r.URL)
		},
	}
	return s, nil
}

// run calls refresh at each interval and for each demand, until ctx ends.
func (s *source) run(ctx context.Context, refresh func(context.Context)) {
	timer := time.NewTimer(s.next())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-s.wake:
		}
		s.mu.Lock()
		flight := s.flight
		s.mu.Unlock()
		refresh(ctx)
		if flight != nil {
			s.mu.Lock()
			s.flight = nil
			s.mu.Unlock()
			close(flight)
		}
		timer.Reset(s.next())
	}
}

func (s *source) next() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return min(s.every, retryEvery)
	}
	return s.every
}

// demand has the key set read again because a token names an unknown key, at most once in demandGap, and waits for
// it.
func (s *source) demand(ctx context.Context) {
	s.mu.Lock()
	flight := s.flight
	if flight == nil {
		if time.Since(s.demanded) < s.demandGap {
			s.mu.Unlock()
			return
		}
		s.demanded = time.Now()
		flight = make(chan struct{})
		s.flight = flight
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	s.mu.Unlock()
	limit := time.NewTimer(fetchTimeout + time.Second)
	defer limit.Stop()
	select {
	case <-flight:
	case <-ctx.Done():
	case <-limit.C:
	}
}

// read gives the key set; changed is false, and the set nil, when it is what it was.
func (s *source) read(ctx context.Context) (set *keys, changed bool, err error) {
	data, err := s.content(ctx)
	if err != nil {
		return nil, false, err
	}
	sum := sha256.Sum256(bytes.TrimSpace(data))
	if s.has && sum == s.last {
		return nil, false, nil
	}
	if set, err = parseKeys(data); err != nil {
		return nil, false, err
	}
	s.last, s.has = sum, true
	return set, true, nil
}

func (s *source) content(ctx context.Context) ([]byte, error) {
	if s.url == "" {
		f, err := os.Open(s.file)
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%w: make a local key with `tidegate token init`, or give --jwks-url", err)
		}
		if err != nil {
			return nil, fmt.Errorf("read the key set: %w", err)
		}
		defer func() { _ = f.Close() }() // it was only read
		return bounded(f)
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("read the key set: %w", err)
	}
	r.Header.Set("Accept", "application/jwk-set+json, application/json")
	answer, err := s.client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("read the key set: %w", err)
	}
	defer func() { _ = answer.Body.Close() }() // as above
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read the key set: the server answered %s", answer.Status)
	}
	return bounded(answer.Body)
}

func bounded(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxKeySet+1))
	if err != nil {
		return nil, fmt.Errorf("read the key set: %w", err)
	}
	if len(data) > maxKeySet {
		return nil, fmt.Errorf("the key set is larger than %d bytes", maxKeySet)
	}
	return data, nil
}

// note keeps how the last read went; news tells whether that is a new problem.
func (s *source) note(err error) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	news = err != nil && (s.err == nil || s.err.Error() != err.Error())
	s.err = err
	return news
}

func (s *source) problem() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		return errors.New("it is being read")
	}
	return s.err
}
