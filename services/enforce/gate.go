package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// Gate is what enforce needs of an interface's XDP program; *xdp.Gate has it. Its Close leaves the entries in force.
type Gate interface {
	Action
	PutNever(list []xdp.Never) error
	DeleteNever(list []netip.Prefix) error
	NeverList() ([]xdp.Never, error)
	SyncLists(ctx context.Context, want *xdp.Listing, counting bool, keep map[xdp.ListID]bool) (xdp.ListChange, error)
	PauseLists(on bool) error
	ListStats(list xdp.ListID) (xdp.RuleStat, error)
	ResetList(list xdp.ListID) error
	Counters() (xdp.Counters, error)
	Mode() xdp.Mode
	Alive() error // not nil: the interface is gone or another process attached anew
}

// Opener opens the gate of an interface.
type Opener func(iface string) (Gate, error)

func openXDP(bpffs string, t *telemetry.Telemetry) Opener {
	return func(iface string) (Gate, error) {
		g, err := xdp.Open(xdp.Options{Iface: iface, BPFFS: bpffs, Mode: xdp.ModeKeep, Log: t.Log})
		if err != nil {
			return nil, err
		}
		if why := g.Reattached(); why != "" {
			t.Log.Warn("the XDP program was attached anew; rules are put again", "iface", iface, "why", why)
		}
		return g, nil
	}
}

// port is one configured interface.
type port struct {
	name   string
	gate   Gate                // nil: not open
	err    error               // why not
	shadow bool                // rules only count: by configuration, or because a mirror port stops nothing
	there  map[uint64]xdp.Rule // what the gate held when a repetition began; nil outside one
}

// opening tells the loop that a gate was opened, could not be, or is dead (gate nil).
type opening struct {
	index int
	gate  Gate
	err   error
	done  chan struct{} // closed when the loop has taken it
}

const (
	openMin    = 200 * time.Millisecond
	openMax    = 5 * time.Second
	aliveEvery = time.Second
)

// keepOpen opens one interface, and again whenever its program is gone.
func (s *Service) keepOpen(ctx context.Context, index int) {
	name := s.cfg.Ifaces[index]
	hand := func(o opening) bool {
		o.index, o.done = index, make(chan struct{})
		select {
		case s.opened <- o:
			<-o.done
			return true
		case <-ctx.Done():
			return false
		}
	}
	for ctx.Err() == nil {
		var gate Gate
		err := lifecycle.Retry(ctx, openMin, openMax, func(context.Context) (err error) {
			gate, err = s.open(name)
			return err
		}, func(err error, next time.Duration) {
			s.t.CountError("open_interface")
			s.t.Log.Warn("cannot enforce on the interface, trying again", "iface", name, "error", err, "in", next)
			hand(opening{err: err})
		})
		if err != nil {
			return
		}
		if !hand(opening{gate: gate}) {
			_ = gate.Close() // the service ends and nobody took it
			return
		}
		s.t.Log.Info("enforcing on the interface", "iface", name, "mode", gate.Mode().String(), "drops", s.cfg.drops(name) && gate.Mode() != xdp.ModeTap)
		if err := s.watchGate(ctx, gate); err != nil {
			s.t.CountError("interface_lost")
			s.t.Log.Warn("the interface's program is gone, opening it again", "iface", name, "error", err)
			hand(opening{err: err})
		}
	}
}

// watchGate blocks until the gate is dead (its error) or ctx ends (nil).
func (s *Service) watchGate(ctx context.Context, g Gate) error {
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := g.Alive(); err != nil {
				return err
			}
		}
	}
}

// takeGate makes an opened gate the port's, or notes why there is none.
func (s *Service) takeGate(o opening) {
	defer close(o.done)
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.ports[o.index]
	if p.gate != nil && p.gate != o.gate {
		if err := p.gate.Close(); err != nil {
			s.t.CountError("close_interface")
		}
	}
	p.gate, p.err = o.gate, o.err
	if p.gate == nil {
		return
	}
	p.shadow = s.counting(p)
	s.putNever(p)
	s.reconcileGate(p, time.Now())
	s.followPanic(p)
	s.lists.poke()
	s.notify()
}

func (s *Service) counting(p *port) bool { return !s.cfg.drops(p.name) || p.gate.Mode() == xdp.ModeTap }

// modes follows the mode of the interfaces, which another service sets.
func (s *Service) modes(now time.Time) {
	for _, p := range s.gates() {
		if c := s.counting(p); c != p.shadow {
			p.shadow = c
			s.reconcileGate(p, now)
			s.lists.poke()
		}
	}
}

// putNever makes the gate's never-block list the guard's: entries are added before others are removed.
func (s *Service) putNever(p *port) {
	safe := s.guard.safe()
	list := make([]xdp.Never, 0, len(safe))
	for _, prefix := range safe {
		list = append(list, xdp.Never{Prefix: prefix, Source: true, Destination: true})
	}
	s.lists.poke() // entries may be refused, or no more
	err := p.gate.PutNever(list)
	if err == nil {
		var there []xdp.Never
		if there, err = p.gate.NeverList(); err == nil {
			var old []netip.Prefix
			for _, n := range there {
				if !slices.Contains(safe, n.Prefix) {
					old = append(old, n.Prefix)
				}
			}
			if len(old) > 0 {
				err = p.gate.DeleteNever(old)
			}
		}
	}
	if err != nil {
		s.t.CountError("put_never")
		s.t.Log.Error("the never-block list could not be written", "iface", p.name, "error", err)
	}
}

// gates lists the open ones.
func (s *Service) gates() []*port {
	var out []*port
	for _, p := range s.ports {
		if p.gate != nil {
			out = append(out, p)
		}
	}
	return out
}

func (s *Service) closeGates() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, p := range s.ports {
		if p.gate == nil {
			continue
		}
		if err := p.gate.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close %s: %w", p.name, err))
		}
		p.gate, p.err = nil, errors.New("the service has ended")
	}
	return errors.Join(errs...)
}
