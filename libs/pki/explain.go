package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// A HandshakeError says in a sentence for the operator whose certificate a TLS handshake failed over.
type HandshakeError struct {
	sentence string
	err      error
}

func (e *HandshakeError) Error() string { return e.sentence }
func (e *HandshakeError) Unwrap() error { return e.err }

// Explain gives what a TLS handshake fails over as a *HandshakeError; errors that are not about certificates come back
// as they are. peer is the other side in words, with its address; own are this side's files, which may be unnamed.
func Explain(err error, peer string, own Files) error {
	if err == nil {
		return nil
	}
	say := func(format string, args ...any) error {
		return &HandshakeError{sentence: fmt.Sprintf(format, args...), err: err}
	}
	var known *HandshakeError
	var verification *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	switch {
	case errors.As(err, &known):
		return err
	case errors.As(err, &verification) && len(verification.UnverifiedCertificates) > 0:
		return explainVerification(verification, peer, own, say)
	case errors.As(err, &header):
		return say("%s speaks plain text: give it certificates (`tidegate certs`), or start both sides with --insecure", peer)
	}
	// Alerts of the other side have a type that crypto/tls does not export; RFC 8446, section 6.2, names them.
	_, alert, ok := strings.Cut(err.Error(), "remote error: tls: ")
	switch {
	case ok:
	case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		// With TLS 1.3 a server refuses after the handshake, and when it closes with data unread its alert is lost.
		if alert = fault(own); alert == "" {
			return err
		}
	default:
		return err
	}
	cert := "this side's certificate"
	if own.Cert != "" {
		cert = "the certificate " + own.Cert
	}
	switch alert {
	case "expired certificate":
		return say("%s refuses %s, which has expired: renew it with `tidegate certs`", peer, cert)
	case "unknown certificate authority":
		return say("%s refuses %s, which another authority than its own has signed: both sides need certificates of one `tidegate certs`", peer, cert)
	case "certificate required":
		return say("%s demands a certificate and this side has none: name one with --tls-dir", peer)
	case "bad certificate", "unsupported certificate", "unknown certificate", "revoked certificate":
		return say("%s refuses %s (%s): it may have expired or come of another authority; renew it with `tidegate certs`", peer, cert, alert)
	}
	return err
}

// fault is the alert that a server of the same authority gives for this side's certificate; empty when it is good, and
// when there is none.
func fault(own Files) string {
	pair, err := tls.LoadX509KeyPair(own.Cert, own.Key)
	if err != nil {
		return ""
	}
	authority, err := os.ReadFile(own.CA)
	if err != nil {
		return ""
	}
	o := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	o.Roots.AppendCertsFromPEM(authority)
	for _, der := range pair.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			o.Intermediates.AddCert(c)
		}
	}
	_, err = pair.Leaf.Verify(o)
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "expired certificate"
	case errors.As(err, &unknown):
		return "unknown certificate authority"
	}
	return ""
}

func explainVerification(v *tls.CertificateVerificationError, peer string, own Files, say func(string, ...any) error) error {
	// The name is a stranger's text, and gRPC quotes the whole once more.
	name := "'" + strings.Trim(fmt.Sprintf("%.64q", v.UnverifiedCertificates[0].Subject.CommonName), `"`) + "'"
	authority := own.CA
	if authority == "" {
		authority = "the system's authorities"
	}
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	switch {
	case errors.As(v.Err, &invalid) && invalid.Reason == x509.Expired && time.Now().Before(invalid.Cert.NotBefore):
		return say("the certificate %s of %s is valid only from %s: set the clocks of both machines", name, peer, invalid.Cert.NotBefore.UTC().Format(time.RFC3339))
	case errors.As(v.Err, &invalid) && invalid.Reason == x509.Expired:
		return say("the certificate %s of %s expired %s: renew it there with `tidegate certs`", name, peer, invalid.Cert.NotAfter.UTC().Format(time.RFC3339))
	case errors.As(v.Err, &unknown) && strings.Contains(unknown.Error(), "has expired"):
		return say("the authority %s, which signed the certificate %s of %s, has expired: move it away and run `tidegate certs` for all services", authority, name, peer)
	case errors.As(v.Err, &unknown):
		return say("the certificate %s of %s is not signed by %s: both sides need certificates of one `tidegate certs`", name, peer, authority)
	case errors.As(v.Err, &host):
		return say("the certificate %s of %s is not good for the name %s: add it with `tidegate certs --host %s`", name, peer, host.Host, host.Host)
	}
	return say("the certificate %s of %s is not accepted: %v", name, peer, v.Err)
}

// RenewWithin is the time before its end from which on `tidegate certs` makes a certificate anew, and a warning is due.
const RenewWithin = renewAt

// Expired is the sentence about a certificate in use that ended; nil while it is valid.
func Expired(file string, ends, now time.Time) error {
	if now.Before(ends) {
		return nil
	}
	return fmt.Errorf("the certificate %s or its authority expired %s: renew it with `tidegate certs`; it is read again by itself", file, ends.UTC().Format(time.RFC3339))
}
