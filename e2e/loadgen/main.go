// Command loadgen sends generated attacks out of an interface, or writes them into a capture. It is meant
// for test links: it refuses an interface that has a default route.
package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
)

type attackFlags struct {
	Kind    string        `help:"attack to make: ${kinds}" required:""`
	Target  netip.Addr    `help:"victim's IPv4 address" required:""`
	Avoid   []string      `help:"prefix that no source is taken from; repeat or separate by commas"`
	Seed    uint64        `help:"varies length, TTL, options, ports and addresses" default:"1"`
	PPS     int           `help:"packets a second" default:"10000"`
	For     time.Duration `help:"how long" default:"10s"`
	Sources int           `help:"number of source addresses; 0 = the attack's own" default:"0"`
	SrcMAC  string        `help:"source MAC address" default:"02:54:47:00:00:01" name:"src-mac"`
	DstMAC  string        `help:"destination MAC address" default:"02:54:47:00:00:02" name:"dst-mac"`
}

func (f *attackFlags) frames() (*loadgen.Frames, error) {
	a := loadgen.Attack{Kind: f.Kind, Seed: f.Seed, Target: f.Target, Sources: f.Sources}
	for _, m := range []struct {
		name, text string
		to         *[6]byte
	}{{"--src-mac", f.SrcMAC, &a.SrcMAC}, {"--dst-mac", f.DstMAC, &a.DstMAC}} {
		mac, err := net.ParseMAC(m.text)
		if err != nil || len(mac) != 6 {
			return nil, config.Usagef("%s %q is not a MAC address", m.name, m.text)
		}
		*m.to = [6]byte(mac)
	}
	for _, s := range f.Avoid {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, config.Usagef("--avoid: %w", err)
		}
		a.Avoid = append(a.Avoid, p)
	}
	frames, err := loadgen.NewFrames(a)
	if err != nil {
		return nil, config.Usagef("%w", err)
	}
	return frames, nil
}

type sendCmd struct {
	attackFlags `embed:""`
	Iface       string `help:"interface to send out of" required:""`
}

func (c *sendCmd) Run() error {
	frames, err := c.frames()
	if err != nil {
		return err
	}
	if err := refuseUplink(c.Iface); err != nil {
		return err
	}
	ctx, stop := lifecycle.SignalContext()
	defer stop()
	sender, err := loadgen.NewSender(c.Iface, 0)
	if err != nil {
		return err
	}
	defer func() { _ = sender.Close() }()
	ctx, cancel := context.WithTimeout(ctx, c.For)
	defer cancel()
	sent, err := sender.Send(ctx, frames.Next, c.PPS, 0)
	fmt.Printf("sent %d frames in %.1f s\n", sent.Frames, float64(sent.LastNs-sent.FirstNs)/1e9)
	return err
}

// refuseUplink keeps floods off interfaces that lead to other machines.
func refuseUplink(iface string) error {
	link, err := netlink.LinkByName(iface)
	if err != nil {
		return config.Usagef("--iface %s: %w", iface, err)
	}
	if link.Type() != "veth" {
		return config.Usagef("--iface %s is a %s interface: the generator sends into veth test links only", iface, link.Type())
	}
	routes, err := netlink.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("read the routes of %s: %w", iface, err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			return config.Usagef("--iface %s has a default route: the generator sends into test links only", iface)
		}
	}
	return nil
}

type writeCmd struct {
	attackFlags `embed:""`
	File        string `arg:"" help:"capture to write" type:"path"`
}

func (c *writeCmd) Run() error {
	frames, err := c.frames()
	if err != nil {
		return err
	}
	f, err := os.Create(c.File)
	if err != nil {
		return fmt.Errorf("write the capture: %w", err)
	}
	defer func() { _ = f.Close() }() // closed before when all went well
	w, err := pcapfile.NewWriter(f, 1, 65535)
	if err != nil {
		return err
	}
	// A fixed start makes the file the same each time.
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
	step := int64(time.Second) / int64(max(1, c.PPS))
	var b []byte
	for at := int64(0); at < int64(c.For); at += step {
		b = frames.Next(b[:0])
		if err := w.Write(start+at, b, len(b)); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

type cli struct {
	Send  sendCmd  `cmd:"" help:"send an attack out of an interface of a test link"`
	Write writeCmd `cmd:"" help:"write an attack into a capture"`
}

func main() {
	ctx, err := config.Parse(&cli{}, "loadgen", "Makes attack traffic for tests.", os.Args[1:], kinds())
	if err == nil {
		err = ctx.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "loadgen:", err)
		os.Exit(config.ExitCode(err))
	}
}
