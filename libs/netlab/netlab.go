// Package netlab builds throw-away test links out of network namespaces and veth pairs. The demo, the
// end-to-end tests and the tests of the XDP and AF_XDP packages run on them.
//
// Everything a Lab creates carries the pid of its process in its name, so that two runs on one machine never
// collide and Sweep can tell what a killed run has left behind. It needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN).
package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrNotRoot is returned by New when the process lacks the rights to make namespaces.
var ErrNotRoot = errors.New("network namespaces need root: run as root or with CAP_NET_ADMIN and CAP_SYS_ADMIN")

// Lab owns namespaces and links. Its methods may be called from several goroutines.
type Lab struct {
	prefix string

	mu     sync.Mutex
	spaces []*NS
	links  []madeLink
	closed bool
}

// madeLink remembers one end of a veth pair; deleting one end deletes the pair.
type madeLink struct {
	space netns.NsHandle // owned: a duplicate that outlives the NS
	name  string
}

// End describes one end of a veth pair.
type End struct {
	NS    *NS              // nil: the namespace of the calling thread
	Name  string           // at most 15 characters, see Ifname
	Addrs []netip.Prefix   // addresses with their on-link prefix length; without an IPv6 one the end stays silent on IPv6
	MAC   net.HardwareAddr // nil: the kernel picks one
}

// New makes an empty lab. prefix is one to six ASCII letters that name the purpose, "tgd" for instance.
func New(prefix string) (*Lab, error) {
	if letters(prefix) != prefix || prefix == "" {
		return nil, fmt.Errorf("lab prefix %q: use one to six ASCII letters", prefix)
	}
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	return &Lab{prefix: prefix}, nil
}

// Name gives a name of the form <prefix>-<pid>-<suffix>, for directories and namespaces that Sweep shall find.
func (l *Lab) Name(suffix string) string {
	return l.prefix + "-" + strconv.Itoa(os.Getpid()) + "-" + suffix
}

// Namespace creates /run/netns/<prefix>-<pid>-<name>, visible to `ip netns`, with its loopback up.
func (l *Lab) Namespace(name string) (*NS, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") {
		return nil, fmt.Errorf("namespace name %q: it must be a plain file name", name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.New("create namespace: the lab is closed")
	}
	ns, err := createNamespace(l.Name(name))
	if err != nil {
		return nil, err
	}
	l.spaces = append(l.spaces, ns)
	return ns, nil
}

// Close removes all links and namespaces of the lab, newest first. It goes on after an error and returns all of
// them joined. A link or namespace that is gone already is no error. Close may be called again.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	var errs []error
	for i := len(l.links) - 1; i >= 0; i-- {
		link := l.links[i]
		if err := deleteLink(link.space, link.name); err != nil {
			errs = append(errs, err)
		}
		release(link.space)
	}
	l.links = nil
	for i := len(l.spaces) - 1; i >= 0; i-- {
		if err := l.spaces[i].remove(); err != nil {
			errs = append(errs, err)
		}
	}
	l.spaces = nil
	return errors.Join(errs...)
}

// maxIfname is IFNAMSIZ without its terminating zero.
const maxIfname = 15

// Ifname gives an interface name for a link in a shared namespace: the letters of prefix, the pid, suffix; "tgd12345a"
// for instance. The result has at most 15 characters: prefix is shortened to six letters, and suffix is cut if need be.
// A suffix that begins with a digit is set off by an underscore so that the pid stays readable.
func Ifname(prefix, suffix string) string {
	name := letters(prefix) + strconv.Itoa(os.Getpid())
	if suffix != "" && suffix[0] >= '0' && suffix[0] <= '9' {
		name += "_"
	}
	name += suffix
	if len(name) > maxIfname {
		name = name[:maxIfname]
	}
	return name
}

// letters keeps the ASCII letters of s, at most six.
func letters(s string) string {
	out := make([]byte, 0, 6)
	for i := 0; i < len(s) && len(out) < 6; i++ {
		if c := s[i]; c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			out = append(out, c)
		}
	}
	return string(out)
}

// deleteLink removes an interface of a namespace; one that does not exist is fine.
func deleteLink(space netns.NsHandle, name string) error {
	h, err := netlink.NewHandleAt(space, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("delete link %s: open netlink: %w", name, err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		var gone netlink.LinkNotFoundError
		if errors.As(err, &gone) {
			return nil
		}
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	if err := h.LinkDel(link); err != nil {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

// namespaceDir is where iproute2 keeps named namespaces.
const namespaceDir = "/run/netns"

func namespacePath(name string) string { return filepath.Join(namespaceDir, name) }
