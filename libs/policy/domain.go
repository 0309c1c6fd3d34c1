package policy

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/idna"
)

// Kinds of lists: what their entries are.
const (
	KindCIDR   = "cidr"
	KindDomain = "domain"
)

// MaxDomain is the longest domain in bytes, without a dot at its end (RFC 1035 2.3.4).
const MaxDomain = 253

// DomainText is what the text of a list of domains says.
type DomainText struct {
	Entries  []string       // sorted, each once, as ParseDomain writes them
	Rejected int            // lines that were left out or have a name that was
	Examples []RejectedLine // the first of these, at most 20
}

// ParseDomains reads a list: a domain a line, as ParseDomain reads it. What follows a space, tab, comma, semicolon or # is
// not looked at, nor are empty lines. In a line that begins with an address, as files of hosts have, the names behind it are
// the entries; the names that such files have for the machine itself are not. Lines that say something else are left out and
// told. More than limit entries are ErrListLimit.
func ParseDomains(text []byte, limit int) (DomainText, error) {
	var out DomainText
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	for n := 1; len(text) > 0; n++ {
		line, rest, _ := bytes.Cut(text, []byte{'\n'})
		text = rest
		line, _, _ = bytes.Cut(line, []byte{'#'})
		field, line := nextField(line)
		if len(field) == 0 {
			continue
		}
		var wrong error
		names := 0
		take := func(name []byte) {
			names++
			d, err := ParseDomain(string(name))
			if err == nil {
				out.Entries = append(out.Entries, d)
			} else if wrong == nil {
				wrong = err
			}
		}
		if !isAddress(field) {
			take(field)
		} else {
			for first := field; ; {
				if field, line = nextField(line); len(field) == 0 {
					if names == 0 {
						field, wrong = first, errors.New("an address and no domain")
					}
					break
				}
				if names++; !isOwnName(field) {
					take(field)
				}
			}
		}
		if wrong != nil {
			out.Rejected++
			out.Examples = addExample(out.Examples, n, field, wrong)
		}
		if len(out.Entries) > limit {
			return DomainText{}, fmt.Errorf("%w: more than %d", ErrListLimit, limit)
		}
	}
	slices.Sort(out.Entries)
	out.Entries = slices.Compact(out.Entries)
	return out, nil
}

// nextField cuts the first field off a line.
func nextField(line []byte) (field, rest []byte) {
	const separators = " \t\r\v\f,;"
	line = bytes.TrimLeft(line, separators)
	if i := bytes.IndexAny(line, separators); i >= 0 {
		return line[:i], line[i:]
	}
	return line, nil
}

// isAddress tells whether a field is what a line of a hosts file begins with.
func isAddress(field []byte) bool {
	if len(field) == 0 || len(field) > 64 || field[0] > '9' && bytes.IndexByte(field, ':') < 0 {
		return false
	}
	_, err := netip.ParseAddr(string(field))
	return err == nil
}

// isOwnName tells the names that hosts files have for the machine and its link.
func isOwnName(name []byte) bool {
	switch string(name) {
	case "localhost", "localhost.localdomain", "local", "broadcasthost", "0.0.0.0":
		return true
	}
	return bytes.HasPrefix(name, []byte("ip6-"))
}

var (
	errDomainLength = fmt.Errorf("no domain: it is empty or has more than %d bytes, or a label of it more than 63", MaxDomain)
	errDomainBytes  = errors.New("no domain: labels have letters, digits, - and _, and no - at an end")
	errDomainBroad  = errors.New("too broad: a domain of one label is a whole top-level domain, or a name without one")
	errDomainIsAddr = errors.New("no domain: an address, or its last label is a number")
)

// idn is for looking names up: lower case, composed (UTS 46), and without the rules for host names, which CheckDomain has.
var idn = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.StrictDomainName(false))

// ParseDomain reads a domain in any case, also with "*." or "." in front and a dot at its end, also with letters beyond
// ASCII, and returns it as flows name it: lower case, such letters encoded (RFC 5890), without these dots.
func ParseDomain(s string) (string, error) {
	s = strings.TrimPrefix(s, "*")
	s = strings.TrimPrefix(s, ".")
	s = strings.TrimSuffix(s, ".")
	if len(s) > 4*MaxDomain {
		return "", errDomainLength
	}
	for i := range len(s) {
		if s[i] >= 0x80 {
			a, err := idn.ToASCII(s)
			if err != nil {
				return "", errors.New("no domain: its letters have no encoding (RFC 5890)")
			}
			s = a
			break
		}
	}
	s = strings.ToLower(s)
	return s, CheckDomain(s)
}

// CheckDomain says why s is not what ParseDomain returns: labels of 1 to 63 bytes a-z, 0-9, - and _, at least two of them,
// the last not a number.
func CheckDomain[T string | []byte](s T) error {
	if len(s) == 0 || len(s) > MaxDomain {
		return errDomainLength
	}
	labels, begin, digits := 1, 0, true // digits: the label at hand is a number
	for i := 0; i <= len(s); i++ {
		if i == len(s) || s[i] == '.' {
			switch {
			case i == begin || i-begin > 63:
				return errDomainLength
			case s[begin] == '-' || s[i-1] == '-':
				return errDomainBytes
			case i < len(s):
				labels, begin, digits = labels+1, i+1, true
			}
			continue
		}
		switch c := s[i]; {
		case c >= '0' && c <= '9':
		case c >= 'a' && c <= 'z', c == '-', c == '_':
			digits = false
		default:
			return errDomainBytes
		}
	}
	switch {
	case digits:
		return errDomainIsAddr
	case labels < 2:
		return errDomainBroad
	}
	return nil
}

// InDomain reports whether host is the domain or below it. Both are as ParseDomain writes them.
func InDomain(host, domain string) bool {
	n := len(host) - len(domain)
	return n == 0 && host == domain || n > 0 && host[n-1] == '.' && host[n:] == domain
}

// FormatDomains writes entries as ParseDomains reads them, a line each.
func FormatDomains(entries []string) []byte {
	size := 0
	for _, d := range entries {
		size += len(d) + 1
	}
	out := make([]byte, 0, size)
	for _, d := range entries {
		out = append(append(out, d...), '\n')
	}
	return out
}
