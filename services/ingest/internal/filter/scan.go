package filter

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// kind of a token.
type kind uint8

const (
	end    kind = iota
	word        // identifier, number or address
	quoted      // \word: a name that is not read as a keyword
	symbol
)

type token struct {
	kind kind
	text string
	at   int
}

// symbols, the longer before their beginnings.
var symbols = [...]string{"<<", ">>", "<=", ">=", "==", "!=", "&&", "||", "(", ")", "[", "]", "<", ">", "=", "!", "&", "|", "^", "+", "-", "*", "/", "%", ":"}

// scan splits an expression into tokens, the last of which is end.
func scan(s string) ([]token, error) {
	var out []token
	for i := 0; i < len(s); {
		if strings.IndexByte(" \t\r\n", s[i]) >= 0 {
			i++
			continue
		}
		at, k := i, word
		if s[i] == '\\' {
			i, k = i+1, quoted
		}
		if text := scanWord(s[i:]); text != "" {
			out = append(out, token{k, text, at})
			i += len(text)
			continue
		}
		text := ""
		for _, sym := range symbols {
			if strings.HasPrefix(s[i:], sym) {
				text = sym
				break
			}
		}
		if text == "" || k == quoted {
			return nil, &Error{s, at, fmt.Sprintf("this character has no meaning here; supported are %s", Supported)}
		}
		out = append(out, token{symbol, text, at})
		i += len(text)
	}
	return append(out, token{end, "", len(s)}), nil
}

// scanWord is the word that s begins with. A colon belongs to it only in an IPv6 or Ethernet address, elsewhere it
// separates offset and size in brackets; a hyphen does as in libpcap: tcp-syn, 1-1024.
func scanWord(s string) string {
	n, colons := 0, false
	for n < len(s) && (letterOrDigit(s[n]) || s[n] == '.' || s[n] == '_' || s[n] == ':' || s[n] == '-' && n > 0) {
		colons = colons || s[n] == ':'
		n++
	}
	run := strings.TrimRight(s[:n], "-")
	if colons {
		if _, err := netip.ParseAddr(run); err == nil {
			return run
		}
		if _, err := net.ParseMAC(run); err == nil {
			return run
		}
		run = run[:strings.IndexByte(run, ':')]
	}
	return run
}

func letterOrDigit(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
