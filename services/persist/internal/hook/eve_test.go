package hook

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

func eveRig(t *testing.T) (*rig, string) {
	path := filepath.Join(t.TempDir(), "eve.json")
	return newRig(t, func(c *Config) { c.EVEFile = path }), path
}

func flowRecords(batch uint64) *eventv1.FlowRecords {
	src, dst := netip.MustParseAddr("128.232.110.120").As16(), netip.MustParseAddr("66.35.250.204").As16()
	return &eventv1.FlowRecords{Sensor: "edge1", Epoch: 1, Batch: batch, Records: []*eventv1.FlowRecord{{
		Id: "edge1/1/7/0", SrcIp: src[:], DstIp: dst[:], SrcPort: 34855, DstPort: 80, Protocol: 6, Vlan: 12, Tunnel: 4096,
		FirstNs: 1_700_000_000_000_000_000, LastNs: 1_700_000_003_500_000_000, PacketsFwd: 5, PacketsRev: 4, BytesFwd: 500, BytesRev: 4000,
		TcpFlagsFwd: 0x1b, TcpFlagsRev: 0x12, EndReason: uint32(flowv1.EndReason_END_REASON_FIN), App: "http", Host: "example.org",
		HttpMethod: "GET", UserAgent: "curl/8",
	}}}
}

// object reads a line.
func object(t *testing.T, line string) map[string]any {
	t.Helper()
	m := map[string]any{}
	if err := json.Unmarshal([]byte(line), &m); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return m
}

// TestEVELines: alerts, flows and drops in the file, with the names that Suricata's readers look for.
func TestEVELines(t *testing.T) {
	r, path := eveRig(t)
	r.attack("a1")
	r.enforcement(ruleEvent("e0", eventv1.EnforcementState_ENFORCEMENT_STATE_APPLIED)) // no line
	r.enforcement(ruleEvent("e1", eventv1.EnforcementState_ENFORCEMENT_STATE_FIRST_DROP))
	r.enforcement(ruleEvent("e2", eventv1.EnforcementState_ENFORCEMENT_STATE_EXPIRED))
	bustest.Wait(t, "three lines", func() bool { return len(lines(t, path)) == 3 })
	if _, err := r.bus.PublishFlows(context.Background(), flowRecords(1)); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "four lines", func() bool { return len(lines(t, path)) == 4 })
	got := lines(t, path)

	alert := object(t, got[0])
	delete(alert, "tidegate")
	want := map[string]any{
		"timestamp": "2023-11-14T22:13:20.100000+0000", "event_type": "alert", "host": "edge1", "src_ip": "192.0.2.7", "dest_ip": "198.51.100.10",
		"proto": "TCP", "flow_id": alert["flow_id"],
		"alert": map[string]any{"action": "allowed", "gid": 731.0, "signature_id": 1.0, "rev": 1.0, "signature": "TIDEGATE syn_flood",
			"category": "Attempted Denial of Service", "severity": 1.0},
	}
	if d := cmp.Diff(want, alert); d != "" {
		t.Error(d)
	}
	first, last := object(t, got[1]), object(t, got[2])
	ours := first["tidegate"].(map[string]any) //nolint:errcheck // a test may panic
	if ours["rule_id"] != "r1" || ours["state"] != "first_drop" || ours["type"] != "amp_dns" || ours["time_to_first_drop_ns"] != "48000000" || ours["dropped"] != 60.0 {
		t.Errorf("a drop says %v", ours)
	}
	delete(first, "tidegate")
	want = map[string]any{
		"timestamp": "2023-11-14T22:13:20.200000+0000", "event_type": "drop", "host": "edge1", "src_ip": "0.0.0.0", "src_port": 53.0,
		"dest_ip": "198.51.100.10", "proto": "UDP", "drop": map[string]any{"reason": "rules"}, "flow_id": first["flow_id"],
		"alert": map[string]any{"action": "blocked", "gid": 731.0, "signature_id": 9.0, "rev": 1.0, "signature": "TIDEGATE amp_dns signature",
			"category": "Attempted Denial of Service", "severity": 1.0},
	}
	if d := cmp.Diff(want, first); d != "" {
		t.Error(d)
	}
	if last["event_type"] != "drop" || last["tidegate"].(map[string]any)["state"] != "expired" || last["flow_id"] != first["flow_id"] || alert["flow_id"] != first["flow_id"] { //nolint:errcheck // a test may panic
		t.Errorf("the end of a rule: %v", last)
	}
	flow := object(t, got[3])
	if d := cmp.Diff(map[string]any{
		"tidegate": map[string]any{"id": "edge1/1/7/0", "tunnel": 4096.0}, "timestamp": "2023-11-14T22:13:23.500000+0000", "flow_id": flow["flow_id"],
		"event_type": "flow", "host": "edge1", "vlan": []any{12.0}, "src_ip": "128.232.110.120", "src_port": 34855.0, "dest_ip": "66.35.250.204",
		"dest_port": 80.0, "proto": "TCP", "app_proto": "http", "community_id": "1:LQU9qZlK+B5F3KDmev6m5PMibrg=",
		"flow": map[string]any{"pkts_toserver": 5.0, "pkts_toclient": 4.0, "bytes_toserver": 500.0, "bytes_toclient": 4000.0,
			"start": "2023-11-14T22:13:20.000000+0000", "end": "2023-11-14T22:13:23.500000+0000", "age": 3.0, "state": "closed",
			"reason": "timeout", "alerted": false},
		"tcp": map[string]any{"tcp_flags": "1b", "tcp_flags_ts": "1b", "tcp_flags_tc": "12", "syn": true, "fin": true, "psh": true, "ack": true,
			"state": "closed"},
		"http": map[string]any{"hostname": "example.org", "http_user_agent": "curl/8", "http_method": "GET"},
	}, flow); d != "" {
		t.Error(d)
	}
}

// TestCommunityID compares with the examples of the specification.
func TestCommunityID(t *testing.T) {
	for _, c := range []struct {
		src, dst         string
		sport, dport, ip uint32
		want             string
	}{
		{"128.232.110.120", "66.35.250.204", 34855, 80, 6, "1:LQU9qZlK+B5F3KDmev6m5PMibrg="},
		{"66.35.250.204", "128.232.110.120", 80, 34855, 6, "1:LQU9qZlK+B5F3KDmev6m5PMibrg="},
		{"192.168.1.52", "8.8.8.8", 54585, 53, 17, "1:d/FP5EW3wiY1vCndhwleRRKHowQ="},
		{"192.0.2.1", "192.0.2.2", 0, 0, 1, ""},
	} {
		if got := communityID(netip.MustParseAddr(c.src), netip.MustParseAddr(c.dst), c.sport, c.dport, c.ip); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// TestKinds: every type of attack has a number of its own.
func TestKinds(t *testing.T) {
	seen := map[uint32]string{unknownKind: "unknown"}
	for name, k := range kinds {
		if other, ok := seen[k.id]; ok || k.severity < 1 || k.severity > 3 || k.category == "" {
			t.Errorf("%s: %+v, %s", name, k, other)
		}
		seen[k.id] = name
	}
}

// TestEVERotation: the file may be moved away, with and without SIGHUP; nothing is lost and nothing comes twice.
func TestEVERotation(t *testing.T) {
	r, path := eveRig(t)
	var all []string
	for round, how := range []string{"moved", "SIGHUP", "removed"} {
		ids := names(how, 3)
		for _, id := range ids {
			r.attack(id)
		}
		bustest.Wait(t, how, func() bool { return len(lines(t, path)) == 3 })
		for _, l := range lines(t, path) {
			all = append(all, object(t, l)["tidegate"].(map[string]any)["attack_id"].(string)) //nolint:errcheck // a test may panic
		}
		if !slices.Equal(all[3*round:], ids) {
			t.Errorf("%s: %v", how, all[3*round:])
		}
		switch how {
		case "removed":
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		case "SIGHUP":
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
		default:
			if err := os.Rename(path, path+".2"); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.attack("last")
	bustest.Wait(t, "a new file", func() bool { return len(lines(t, path)) == 1 })
}

// TestEVEFolderGone: while the file cannot be written nothing is lost; failures are counted.
func TestEVEFolderGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	if err := os.Mkdir(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "eve.json")
	r := newRig(t, func(c *Config) { c.EVEFile = path })
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	for _, id := range names("a", 3) {
		r.attack(id)
	}
	bustest.Wait(t, "failures", func() bool {
		return r.count("failures", prometheus.Labels{"hook": "eve-file", "reason": "open"}) > 1
	})
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "all lines", func() bool { return len(lines(t, path)) == 3 })
}

// TestEVEDiskFull: what is written of a batch that does not fit is taken back, and all of it follows when there is room.
func TestEVEDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		missing(t, "the right to mount a small file system: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	fill := filepath.Join(dir, "fill")
	write(t, fill, strings.Repeat("x", 56<<10), 0o600)
	e := &eveFile{path: filepath.Join(dir, "eve.json"), t: telemetry.Discard("persist"), duplicates: prometheus.NewCounter(prometheus.CounterOpts{Name: "x"})}
	var want []string
	batch := []bus.EVELine{{ID: "1", JSON: []byte(`{"tidegate":{"id":"1"}}`)}, {ID: "2", JSON: []byte(`{"tidegate":{"id":"2"},"x":"` + strings.Repeat("y", 6<<10) + `"}`)}}
	if err := e.write(context.Background(), batch[:1], false); err != nil {
		t.Fatal(err)
	}
	want = append(want, string(batch[0].JSON))
	var f *failure
	if err := e.write(context.Background(), []bus.EVELine{batch[1], batch[1]}, false); !errors.As(err, &f) || f.reason != "write" || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("a full disk: %v", err)
	}
	if got := lines(t, e.path); !slices.Equal(got, want) {
		t.Fatalf("the file holds %d lines", len(got))
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	if err := e.write(context.Background(), batch[1:], false); err != nil {
		t.Fatal(err)
	}
	if got := lines(t, e.path); len(got) != 2 || got[1] != string(batch[1].JSON) {
		t.Errorf("the file holds %d lines", len(got))
	}
}

// TestEVEComesAgain: after a crash, a line that is in the file is not written twice, and half a line is cut off.
func TestEVEComesAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "eve.json")
	write(t, path, `{"tidegate":{"id":"1"},"a":1}`+"\n"+`{"tidegate":{"id":"2"},"a":1}`+"\n"+`{"tidegate":{"id":"3"},"a`, 0o640)
	tel := telemetry.Discard("persist")
	e := &eveFile{path: path, t: tel, duplicates: prometheus.NewCounter(prometheus.CounterOpts{Name: "x"})}
	again := []bus.EVELine{
		{ID: "2", JSON: []byte(`{"tidegate":{"id":"2"},"a":1}`)},
		{ID: "3", JSON: []byte(`{"tidegate":{"id":"3"},"a":1}`)},
		{ID: "4", JSON: []byte(`{"tidegate":{"id":"4"},"a":1}`)},
	}
	if err := e.write(context.Background(), again, true); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, l := range lines(t, path) {
		ids = append(ids, object(t, l)["tidegate"].(map[string]any)["id"].(string)) //nolint:errcheck // a test may panic
	}
	if !slices.Equal(ids, []string{"1", "2", "3", "4"}) || testutil.ToFloat64(e.duplicates) != 1 || testutil.ToFloat64(tel.ErrorCounter("eve_half_line")) != 1 {
		t.Errorf("the file holds %v, %v lines were there", ids, testutil.ToFloat64(e.duplicates))
	}
}

// TestEVENameInJSON: a sensor may have a name that JSON writes in another way; its lines are known all the same.
func TestEVENameInJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "eve.json")
	e := &eveFile{path: path, t: telemetry.Discard("persist"), duplicates: prometheus.NewCounter(prometheus.CounterOpts{Name: "x"})}
	var l []bus.EVELine
	for _, id := range []string{`R&D/1/1`, `R&D/1/2`, `a"b/1/1`, `a"b/1/2`} {
		l = encode(l, &eveLine{EventType: typeFlow, Tidegate: eveTidegate{ID: id}})
	}
	for _, take := range [][]bus.EVELine{{l[0], l[2]}, l, l} {
		if err := e.write(context.Background(), take, true); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(lines(t, path)); n != len(l) {
		t.Errorf("%d lines, want %d:\n%s", n, len(l), strings.Join(lines(t, path), "\n"))
	}
}

// TestEVEFileOfAnother: half a line of another program is not cut off; when it is whole, lines follow.
func TestEVEFileOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "eve.json")
	const half = `{"timestamp":"2026-03-01T12:00:03.500000+0000","flow_id":5,`
	write(t, path, half, 0o640)
	e := &eveFile{path: path, t: telemetry.Discard("persist"), duplicates: prometheus.NewCounter(prometheus.CounterOpts{Name: "x"})}
	line := []bus.EVELine{{ID: "1", JSON: []byte(`{"tidegate":{"id":"1"}}`)}}
	if err := e.write(context.Background(), line, false); err == nil || !strings.Contains(err.Error(), "another program") {
		t.Errorf("%v, want an error", err)
	}
	if got := lines(t, path); len(got) != 1 || got[0] != half {
		t.Errorf("the file holds %q", got)
	}
	write(t, path, half+"\"event_type\":\"alert\"}\n", 0o640)
	if err := e.write(context.Background(), line, false); err != nil || len(lines(t, path)) != 2 {
		t.Errorf("%v, the file holds %q", err, lines(t, path))
	}
}

// TestEVEOnNATS: lines on their subjects, stored once.
func TestEVEOnNATS(t *testing.T) {
	r := newRig(t, func(c *Config) { c.EVENATS, c.EVETypes = true, []string{"alert", "flow"} })
	for _, id := range names("a", 3) {
		r.attack(id)
	}
	r.enforcement(ruleEvent("e1", eventv1.EnforcementState_ENFORCEMENT_STATE_FIRST_DROP)) // not asked for
	if _, err := r.bus.PublishFlows(context.Background(), flowRecords(1)); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "the lines", func() bool {
		st, err := r.bus.State(context.Background(), bus.StreamEVE)
		return err == nil && st.Messages == 4
	})
	r.stop()
	r.start()
	r.attack("b")
	bustest.Wait(t, "one more", func() bool {
		st, err := r.bus.State(context.Background(), bus.StreamEVE)
		return err == nil && st.Messages == 5
	})
	time.Sleep(50 * time.Millisecond)
	if st, err := r.bus.State(context.Background(), bus.StreamEVE); err != nil || st.Messages != 5 {
		t.Errorf("the stream holds %+v, %v", st, err)
	}
}
