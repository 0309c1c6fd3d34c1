package ingest

import (
	"context"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
	statusv1 "github.com/tidegate-mesh/tidegate/proto/status/v1"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/pipeline"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/shard"
)

// Status implements IngestService.
func (s *Service) Status(context.Context, *ingestv1.StatusRequest) (*ingestv1.StatusResponse, error) {
	now := time.Now()
	problems := s.tel.Problems("capture", "classify", "certificate")
	version, _ := telemetry.Build()
	r := &ingestv1.StatusResponse{
		Status: &statusv1.ServiceStatus{
			Service: "ingest", Instance: s.cfg.Sensor, Version: version, StartedNs: s.started.UnixNano(),
			Ready: len(problems) == 0, Problems: problems, Ledger: &statusv1.Ledger{Terms: s.Ledger()},
			CertificateExpiresNs: s.tel.ExpiryNs(),
		},
	}
	for _, c := range s.counts {
		l := c.ledger()
		b := &l.xdp.Bytes
		capture, _ := c.capture.Load().(string)
		transmitted, _ := c.sent(&l)
		if s.cfg.inner() {
			capture += ", tunnels looked into"
		}
		r.Interfaces = append(r.Interfaces, &ingestv1.Interface{
			Name: c.name, Mode: s.cfg.Mode, Capture: capture, Queues: s.queuesOf(c.name),
			XdpPackets: map[string]uint64{
				"seen": l.xdp.Seen, "drop": l.xdp.Drop, "rate_limited": l.xdp.RateLimited, "count": l.xdp.Count,
				"pass": l.xdp.Pass, "forward": l.xdp.Forward, "redirect": l.xdp.Redirect, "no_reader": l.xdp.NoReader,
			},
			XdpBytes: map[string]uint64{
				"seen": b.Seen, "drop": b.Drop, "rate_limited": b.RateLimited, "count": b.Count,
				"pass": b.Pass, "forward": b.Forward, "redirect": b.Redirect, "no_reader": b.NoReader,
			},
			Received: l.received + c.records.Load(), RingDrops: l.lost(), Transmitted: transmitted,
		})
	}
	for _, c := range s.shards.list {
		m := &ingestv1.Classifier{
			Address: c.name, Connected: c.send.connected.Load(), Share: float64(c.slots.Load()) / shard.Slots, BatchesPending: c.box.stats().BatchesPending,
		}
		if err := c.send.check(); err != nil {
			m.Problem = err.Error()
		}
		r.Classifiers = append(r.Classifiers, m)
	}
	r.TopDestinations, r.TopSources = s.windows.recent.talkers(now)
	return r, nil
}

func (s *Service) queuesOf(name string) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plane == nil {
		return 0
	}
	for _, q := range s.plane.ports {
		if q.name == name {
			return uint32(q.readers()) //nolint:gosec // at most maxQueues
		}
	}
	return 0
}

// Ledger returns the sensor's terms, of this run and summed over its interfaces. Once traffic has stopped:
//
//	xdp_seen = xdp_dropped + xdp_rate_limited + xdp_passed + xdp_forwarded + xdp_no_reader + redirected
//	raised = received + ring_drops + lost_at_restart (raised is redirected, host mode's copies, packet_copied, or what was read from captures)
//	received = accounted + undecodable
//	flows_created = flows_ended + flows_active + flows_summarised + flows_evicted
//	batches_made = batches_acked + batches_dropped + batches_pending
//	records_acked = records_published + records_unpublished
//	windows_made = windows_acked + windows_dropped + windows_pending
//
// and in inline mode received = transmitted + tx_dropped. Raised is what was meant for user space: redirected, and in host
// mode copies of what passed. While it runs, later terms are read before earlier
// ones, so differences are what is in flight.
func (s *Service) Ledger() map[string]uint64 {
	o := s.shards.stats()
	flows := s.flowTotals()
	t := map[string]uint64{
		"batches_made": o.BatchesMade, "batches_acked": o.BatchesAcked, "batches_dropped": o.BatchesDropped,
		"batches_pending": o.BatchesPending, "batches_resent": o.Resent, "batches_moved": o.Moved, "bytes_pending": o.BytesPending,
		"records_acked": o.RecordsAcked, "records_dropped": o.RecordsDropped,
		"records_published": o.Published, "records_unpublished": o.Unpublished,
		"windows_made": o.WindowsMade, "windows_acked": o.WindowsAcked, "windows_dropped": o.WindowsDropped,
		"windows_pending": o.WindowsPending,
		"flows_created":   flows.Created, "flows_ended": flows.Ended, "flows_active": flows.Active,
		"flows_summarised": flows.Summarised, "flows_evicted": flows.Evicted, "packets_untracked": flows.Untracked,
		"segments_withheld": flows.Withheld,
	}
	s.mu.Lock()
	for _, w := range s.workers {
		c := w.pipe.Counts()
		t["accounted"] += c.Accounted
		for reason, n := range c.Undecodable {
			if n > 0 {
				t["undecodable"] += n
				t["undecodable_"+packet.Reason(reason).String()] += n //nolint:gosec // an index below NumReasons
			}
		}
	}
	s.mu.Unlock()
	tunnels, unopened := s.tunnels()
	for kind, n := range tunnels {
		t["tunnels_"+kind] = n
	}
	for reason, n := range unopened {
		t["tunnels_unopened_"+reason] = n
	}
	for _, name := range []string{"accounted", "undecodable"} {
		t[name] += 0 // a term that is 0 is known
	}
	if s.offload != nil {
		t["kernel_flows"] = uint64(max(s.offload.forwards.Load(), 0)) //nolint:gosec // not negative
		t["kernel_metered"] = s.offload.metered.Load()
		t["kernel_refused"] = s.offload.refused.Load()
	}
	s.account()
	for _, c := range s.counts {
		l := c.ledger()
		t["xdp_seen"] += l.xdp.Seen
		t["xdp_dropped"] += l.xdp.Drop
		t["xdp_rate_limited"] += l.xdp.RateLimited
		t["xdp_counted"] += l.xdp.Count
		t["xdp_passed"] += l.xdp.Pass
		t["xdp_forwarded"] += l.xdp.Forward
		t["xdp_no_reader"] += l.xdp.NoReader
		t["xdp_unread"] += l.xdp.Unread
		t["redirected"] += l.xdp.Redirect
		t["raised"] += l.raised() + c.records.Load()
		t["received"] += l.received + c.records.Load()
		t["packet_copied"] += l.packets.Copied
		t["ring_drops"] += l.lost()
		t["lost_at_restart"] += l.lostAtRestart
		transmitted, dropped := c.sent(&l)
		t["transmitted"] += transmitted
		t["tx_dropped"] += dropped
	}
	return t
}

// tunnels counts tunnels that were looked into by their kind, and those that were not by the reason. Both are empty
// unless packets are accounted by what tunnels carry.
func (s *Service) tunnels() (opened, unopened map[string]uint64) {
	if !s.cfg.inner() {
		return nil, nil
	}
	opened, unopened = map[string]uint64{}, map[string]uint64{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.workers {
		c := w.pipe.Counts()
		for kind, n := range c.Tunnels {
			if k := packet.Tunnel(kind); k != packet.NoTunnel { //nolint:gosec // an index below NumTunnels
				opened[k.String()] += n
			}
		}
		for reason, n := range c.Unopened {
			unopened[pipeline.Unopened(reason).String()] += n //nolint:gosec // an index of the array
		}
	}
	return opened, unopened
}
