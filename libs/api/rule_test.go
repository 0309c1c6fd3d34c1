package api

import (
	"encoding/json"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

func TestRuleInput(t *testing.T) {
	now := time.Unix(1000, 0).UTC()
	port := uint16(53)
	in := RuleInput{Action: "rate-limit", RatePPS: 10, PerSource: true, For: "10m", Match: Match{
		Src: "192.0.2.7", Proto: "UDP", SrcPort: &port, Length: "60-100", TTL: "64",
	}}
	r, err := in.Rule(now)
	if err != nil {
		t.Fatal(err)
	}
	want := policy.Match{Src: netip.MustParsePrefix("192.0.2.7/32"), Protocol: 17, HasProtocol: true, SrcPort: 53, HasSrcPort: true,
		LengthMin: 60, LengthMax: 100, TTLMin: 64, TTLMax: 64}
	if r.Match != want || !r.Expires.Equal(now.Add(10*time.Minute)) || r.Action != policy.RateLimit || !r.PerSource || r.ID != "" {
		t.Errorf("read as %+v", r)
	}
	host := RuleInput{Action: "drop", Match: Match{Host: "*.BÜCHER.example.", Proto: "tcp"}}
	if r, err := host.Rule(now); err != nil || r.Match.Host != "xn--bcher-kva.example" || NewMatch(&r.Match).Host != r.Match.Host {
		t.Errorf("a host is read as %+v, %v", r.Match, err)
	}
	forever := RuleInput{Action: "drop", For: "0"}
	if r, err := forever.Rule(now); err != nil || !r.Expires.IsZero() {
		t.Errorf("for 0 gives %v, %v", r.Expires, err)
	}
	standard := RuleInput{Action: "drop"}
	if r, err := standard.Rule(now); err != nil || !r.Expires.Equal(now.Add(DefaultFor)) {
		t.Errorf("the default life gives %v, %v", r.Expires, err)
	}
}

func TestRuleInputNamesEachWrongField(t *testing.T) {
	in := RuleInput{Action: "burn", For: "-1s", Match: Match{Host: "com", Src: "1.2.3", Dst: "x", Proto: "999", TCPFlags: "Q", Length: "9-8", TTL: "256"}}
	_, err := in.Rule(time.Now())
	var p *Problem
	if !errors.As(err, &p) || p.Status != 422 {
		t.Fatalf("error %v", err)
	}
	want := []string{"body.action", "body.match.host", "body.match.src", "body.match.dst", "body.match.proto", "body.match.tcp_flags", "body.match.length", "body.match.ttl", "body.for"}
	if len(p.Errors) != len(want) {
		t.Fatalf("wrong fields %+v", p.Errors)
	}
	for i, w := range want {
		if p.Errors[i].Location != w {
			t.Errorf("field %d is %s, want %s", i, p.Errors[i].Location, w)
		}
	}
}

func FuzzRuleInput(f *testing.F) {
	f.Add([]byte(`{"action":"drop","match":{"src":"192.0.2.0/24","proto":"tcp","dport":80,"tcp_flags":"S/SA","ttl":"1-5","fragment":false},"for":"1h"}`))
	f.Add([]byte(`{"action":"drop","match":{"host":"*.Example.org."}}`))
	f.Add([]byte(`{"action":"rate-limit","rate_bps":1,"match":{"length":"0-1"}}`))
	now := time.Unix(1000, 0)
	f.Fuzz(func(t *testing.T, b []byte) {
		var in RuleInput
		if json.Unmarshal(b, &in) != nil {
			return
		}
		r, err := in.Rule(now)
		if err != nil {
			var p *Problem
			if !errors.As(err, &p) || len(p.Errors) == 0 {
				t.Fatalf("the error names no field: %v", err)
			}
			return
		}
		in.Match = NewMatch(&r.Match)
		back, err := in.Rule(now)
		if err != nil || back.Match != r.Match {
			t.Fatalf("%+v reads back as %+v, %v", r.Match, back.Match, err)
		}
	})
}
