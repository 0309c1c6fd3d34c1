package main

import (
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

func TestRuleFromFlags(t *testing.T) {
	port := uint16(443)
	now := time.Unix(1000, 0)
	c := rulesAddCmd{
		Action: "rate-limit", Src: "192.0.2.9", Dst: "198.51.100.0/24", Proto: "tcp", Dport: &port, TCPFlags: "S/SA", Length: "40-60", TTL: "64",
		PPS: 100, For: time.Minute, Comment: "test",
	}
	r, err := c.rule(now)
	if err != nil {
		t.Fatal(err)
	}
	want := "proto 6 src 192.0.2.9/32 dst 198.51.100.0/24 dport 443 flags S/SA length 40-60 ttl 64-64"
	if got := r.Match.String(); got != want {
		t.Errorf("match %q, want %q", got, want)
	}
	if r.Action != policy.RateLimit || r.RatePPS != 100 || !r.Expires.Equal(now.Add(time.Minute)) || r.Origin != policy.OriginUser {
		t.Errorf("rule %+v", r)
	}
	again, err := c.rule(now.Add(time.Hour))
	if err != nil || again.ID != r.ID {
		t.Errorf("the same flags give another id: %q, %q, %v", r.ID, again.ID, err)
	}
}

func TestRuleFlagsRefused(t *testing.T) {
	port := uint16(80)
	for name, c := range map[string]rulesAddCmd{
		"port without protocol": {Action: "drop", Dport: &port},
		"unknown protocol":      {Action: "drop", Proto: "quicc"},
		"protocol 300":          {Action: "drop", Proto: "300"},
		"reversed range":        {Action: "drop", Length: "60-40"},
		"range of words":        {Action: "drop", TTL: "low"},
		"ttl above 255":         {Action: "drop", TTL: "256"},
		"rate without limit":    {Action: "rate-limit"},
		"limit without rate":    {Action: "drop", PPS: 5},
		"bad destination":       {Action: "drop", Dst: "example.org"},
	} {
		if r, err := c.rule(time.Now()); err == nil {
			t.Errorf("%s was accepted: %+v", name, r)
		}
	}
}

func TestQuantity(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 999: "999", 1500: "1.5k", 2.5e6: "2.5M", 3e9: "3.0G"} {
		if got := quantity(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
}
