package loadgen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/cilium/ebpf/link"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

const (
	stamp      = 0x7469646567617465 // STAMP of loadgen.c
	delaySteps = 1 << 14
)

// Stamped makes one UDP frame after the other through the link that a Counter times: Sender.Send takes it as next. Flows is
// how many flows they are of.
func (l *Link) Stamped(flows int) func([]byte) []byte {
	h := packet.Header{SrcMAC: [6]byte(GeneratorMAC), DstMAC: [6]byte(VictimMAC), Src: l.Clients[0], Dst: VictimAddr}
	n, payload := 0, make([]byte, 18)
	binary.NativeEndian.PutUint64(payload, stamp)
	return func(b []byte) []byte {
		n++
		binary.NativeEndian.PutUint64(payload[8:], monotonic())
		return h.AppendUDP(b, uint16(10000+n%flows), 27015, payload) //nolint:gosec // flows are few
	}
}

// Age is how long ago the frame with this UDP payload was stamped; ok is false without a stamp.
func Age(payload []byte) (age time.Duration, ok bool) {
	if len(payload) < 16 || binary.NativeEndian.Uint64(payload) != stamp {
		return 0, false
	}
	now, at := monotonic(), binary.NativeEndian.Uint64(payload[8:])
	return time.Duration(now - min(now, at)), true //nolint:gosec // centuries fit
}

// Delays are how long stamped frames took to the Counter, a count for each microsecond; the last has all longer ones.
type Delays []uint64

// Add counts one frame.
func (d Delays) Add(age time.Duration) { d[min(max(age.Microseconds(), 0), delaySteps-1)]++ }

// NewDelays has none yet.
func NewDelays() Delays { return make(Delays, delaySteps) }

// At is a percentile, 0 … 1, to a microsecond.
func (d Delays) At(share float64) time.Duration {
	sum, upTo := uint64(0), uint64(0)
	for _, n := range d {
		sum += n
	}
	for us, n := range d {
		if upTo += n; upTo > 0 && float64(upTo) >= share*float64(sum) {
			return time.Duration(us) * time.Microsecond
		}
	}
	return 0
}

// Delays reads how long stamped frames were under way since the Counter was made.
func (c *Counter) Delays() (Delays, error) {
	var step uint32
	var perCPU []uint64
	out := NewDelays()
	for it := c.objs.Delays.Iterate(); it.Next(&step, &perCPU); {
		for _, n := range perCPU {
			out[step] += n
		}
	}
	return out, nil
}

// Relay bridges two ports one way by a bare redirect: the least that a bridge can do.
type Relay struct {
	objs loadgenObjects
	link link.Link
}

// NewRelay forwards what comes in at from, out at to.
func NewRelay(from, to string) (*Relay, error) {
	r := &Relay{}
	if err := loadLoadgenObjects(&r.objs, nil); err != nil {
		return nil, fmt.Errorf("load the relay: %w", err)
	}
	in, err := net.InterfaceByName(from)
	if err == nil {
		var out *net.Interface
		if out, err = net.InterfaceByName(to); err == nil {
			err = r.objs.SendPort.Put(uint32(0), uint32(out.Index)) //nolint:gosec // the kernel's, positive
		}
	}
	if err == nil {
		r.link, err = link.AttachXDP(link.XDPOptions{Program: r.objs.Relay, Interface: in.Index})
	}
	if err != nil {
		_ = r.objs.Close()
		return nil, fmt.Errorf("relay from %s to %s: %w", from, to, err)
	}
	return r, nil
}

// Close detaches the program.
func (r *Relay) Close() error { return errors.Join(r.link.Close(), r.objs.Close()) }
