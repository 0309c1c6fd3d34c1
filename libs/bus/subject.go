package bus

import (
	"errors"
	"net/url"
	"strings"
)

// Streams and buckets.
const (
	StreamFlows  = "TG_FLOWS"
	StreamEvents = "TG_EVENTS"
	BucketRules  = "tg_rules"
	BucketNodes  = "tg_nodes"
)

// Subject prefixes; the sensor or node follows. The version is that of the proto package.
const (
	SubjectFlows       = "tg.v1.flows."
	SubjectAttack      = "tg.v1.attack."
	SubjectVerdict     = "tg.v1.verdict."
	SubjectEnforcement = "tg.v1.enforcement."
	SubjectAudit       = "tg.v1.audit." // the gateway follows
	SubjectWindow      = "tg.v1.window."
)

// Subject patterns for ConsumeEvents.
const (
	AllAttacks      = SubjectAttack + ">"
	AllVerdicts     = SubjectVerdict + ">"
	AllEnforcements = SubjectEnforcement + ">"
	AllAudits       = SubjectAudit + ">"
	AllWindows      = SubjectWindow + ">"
	AllFlows        = SubjectFlows + ">"
)

// Token makes a name usable as one token of a subject or key: everything but letters, digits, '-' and '_'
// becomes '_', and an empty name "_".
func Token(name string) string {
	if name == "" {
		return "_"
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		}
		return '_'
	}, name)
}

// parseURL reads one of NATS_URL as the client does: without a scheme it is nats://. No error repeats it, because it may
// hold a password.
func parseURL(s string) (*url.URL, error) {
	s = strings.TrimSpace(s)
	if !strings.Contains(s, "://") {
		s = "nats://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.User == nil && strings.Contains(s, "@") { // a slash in the password ends the host
		return nil, errors.New("NATS_URL cannot be read: write nats://host:4222, and special characters of a password as %XX")
	}
	return u, nil
}

// redact removes user names and passwords from a list of URLs.
func redact(list string) string {
	parts := strings.Split(list, ",")
	for i, p := range parts {
		switch u, err := parseURL(p); {
		case err != nil:
			parts[i] = "_"
		case u.User != nil:
			u.User = url.User("_")
			parts[i] = u.String()
		}
	}
	return strings.Join(parts, ",")
}
