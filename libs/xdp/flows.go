package xdp

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// FlowKey is one direction of a flow. Addresses are 16 bytes, IPv4 mapped; ports in host byte order, 0 for
// protocols without ports; VLAN is the outermost tag's id, 0 = untagged.
type FlowKey struct {
	Src, Dst         [16]byte
	SrcPort, DstPort uint16
	VLAN             uint16
	Proto            uint8
}

// FlowMeter is what the program has forwarded of an allowed flow since AllowFlow. Bytes are of whole frames.
type FlowMeter struct {
	Key            FlowKey
	Packets, Bytes uint64
	LastNs         uint64 // CLOCK_MONOTONIC, to a tick of 1 to 10 ms; 0 = no packet yet
}

func (k *FlowKey) kernel() flowKey {
	return flowKey{
		Src: k.Src, Dst: k.Dst, SrcPort: portBytes(k.SrcPort), DstPort: portBytes(k.DstPort), VLAN: k.VLAN, Protocol: k.Proto,
	}
}

// AllowFlow lets the kernel forward flows to the peer port, in inline mode, and spares user space their copies in host mode. Rules and lists still come
// first. TCP packets with SYN, FIN or RST and all fragments still go to user space. Flows that are allowed
// already keep their meters.
func (g *Gate) AllowFlow(keys []FlowKey) error {
	if len(keys) == 0 {
		return nil
	}
	return g.locked(func() error {
		if err := g.setConfig(func(c *config) { c.FlowsUsed = 1 }); err != nil {
			return err
		}
		for i := range keys {
			k := keys[i].kernel()
			err := g.maps.GateFlows.Update(&k, &flowMeter{}, ebpf.UpdateNoExist)
			switch {
			case err == nil || errors.Is(err, ebpf.ErrKeyExist):
			case errors.Is(err, unix.E2BIG):
				return fmt.Errorf("%s: allow flows: %w", g.iface, ErrFlowLimit)
			default:
				return fmt.Errorf("%s: allow flows: %w", g.iface, err)
			}
		}
		return nil
	})
}

// ForgetFlow sends flows to user space again; unknown ones are ignored. Read their meters before.
func (g *Gate) ForgetFlow(keys []FlowKey) error {
	if len(keys) == 0 {
		return nil
	}
	return g.locked(func() error {
		for i := range keys {
			k := keys[i].kernel()
			if err := g.maps.GateFlows.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("%s: forget flows: %w", g.iface, err)
			}
		}
		return ifEmpty[flowKey](g, g.maps.GateFlows, func(c *config) { c.FlowsUsed = 0 })
	})
}

// AllowedFlows appends the meters of all allowed flows to dst, in no order.
func (g *Gate) AllowedFlows(dst []FlowMeter) ([]FlowMeter, error) {
	keys, values, err := drain[flowKey, flowMeter](g.maps.GateFlows)
	if err != nil {
		return dst, fmt.Errorf("%s: read the allowed flows: %w", g.iface, err)
	}
	for i := range keys {
		k, v := &keys[i], &values[i]
		dst = append(dst, FlowMeter{
			Key: FlowKey{
				Src: k.Src, Dst: k.Dst, SrcPort: bytesPort(k.SrcPort), DstPort: bytesPort(k.DstPort), VLAN: k.VLAN, Proto: k.Protocol,
			},
			Packets: v.Packets + v.OtherPackets, Bytes: v.Bytes + v.OtherBytes, LastNs: v.LastNs,
		})
	}
	return dst, nil
}
