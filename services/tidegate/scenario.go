package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

// scenario is what is sent through a test link: benign connections all the time, attacks one after the other.
type scenario struct {
	Seed    uint64        `help:"seed of the traffic; attacks vary by it" default:"1"`
	Attacks []string      `help:"attacks to send, in this order, again and again" default:"syn_flood,amp_dns,port_scan"`
	PPS     int           `help:"packets a second of an attack; the scans send a tenth of the flood's" default:"50000"`
	Rate    float64       `help:"benign connections a second" default:"60"`
	WarmUp  time.Duration `help:"benign traffic alone before the first attack" default:"4s"`
	Attack  time.Duration `name:"attack-for" help:"how long each attack lasts" default:"8s"`
	Rest    time.Duration `help:"pause between attacks" default:"4s"`
	Rounds  int           `help:"end after each attack was sent so many times; 0 = go on" default:"0"`
}

// check reports the first attack that cannot be made.
func (s *scenario) check() error {
	if len(s.Attacks) == 0 {
		return errors.New("--attacks: name at least one")
	}
	for _, k := range s.Attacks {
		if _, err := loadgen.NewFrames(loadgen.Attack{Kind: k, Target: loadgen.VictimAddr}); err != nil {
			return fmt.Errorf("--attacks: %w", err)
		}
	}
	return nil
}

// run calls attack for one kind after the other, each time around with another seed, until ctx ends or the rounds are over.
func (s *scenario) run(ctx context.Context, attack func(ctx context.Context, kind string, seed uint64) error) error {
	if !sleep(ctx, s.WarmUp) {
		return nil
	}
	for i := 0; s.Rounds <= 0 || i < s.Rounds*len(s.Attacks); i++ {
		kind := s.Attacks[i%len(s.Attacks)]
		if err := attack(ctx, kind, s.Seed+uint64(i/len(s.Attacks))); err != nil {
			return err
		}
		if !sleep(ctx, s.Rest) {
			break
		}
	}
	return nil
}

// rate is packets a second of an attack.
func (s *scenario) rate(kind string) int {
	if kind == loadgen.PortScan || kind == loadgen.HostSweep {
		return max(1, s.PPS/10)
	}
	return s.PPS
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
