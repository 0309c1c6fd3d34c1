package ingest

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidegate-mesh/tidegate/services/ingest/internal/shard"
)

// collector reads the metrics from the service's own counts when they are scraped, so the hot loops keep one
// set of counters.
type collector struct {
	s *Service

	packets, bytes, drops, capture, active, batches, connected, share, tunnels, unopened *prometheus.Desc
}

func newCollector(s *Service) *collector {
	sensor := prometheus.Labels{"sensor": s.cfg.Sensor}
	return &collector{
		s: s,
		packets: prometheus.NewDesc("tidegate_ingest_packets_total",
			"Frames received from an rx queue.", []string{"iface", "queue"}, sensor),
		bytes: prometheus.NewDesc("tidegate_ingest_bytes_total",
			"Bytes of frames received from an rx queue.", []string{"iface", "queue"}, sensor),
		drops: prometheus.NewDesc("tidegate_ingest_drops_total",
			"Frames lost between the XDP program and the wire, by reason.", []string{"iface", "reason"}, sensor),
		capture: prometheus.NewDesc("tidegate_ingest_capture",
			"1 for the way in which frames come from the interface: af_xdp, af_packet, ring_buffer, capture_file or none.", []string{"iface", "capture"}, sensor),
		active: prometheus.NewDesc("tidegate_ingest_flows_active",
			"Flows in the tables of all queues.", nil, nil),
		batches: prometheus.NewDesc("tidegate_ingest_batches_total",
			"Batches by what became of them.", []string{"result"}, nil),
		connected: prometheus.NewDesc("tidegate_ingest_classifier_connected",
			"1 while there is a stream to the classifier, which is one of those configured.", []string{"classifier"}, nil),
		share: prometheus.NewDesc("tidegate_ingest_classifier_share",
			"Share of the networks that the classifier judges now, 0 while it does not answer and others judge for it.", []string{"classifier"}, nil),
		tunnels: prometheus.NewDesc("tidegate_ingest_tunnels_total",
			"Tunnels of packets that are accounted by what they carry, by kind; with --tunnels inner and of captures.", []string{"tunnel"}, sensor),
		unopened: prometheus.NewDesc("tidegate_ingest_tunnels_unopened_total",
			"Tunnelled packets that are accounted by their outer header though they are not to be, by reason.", []string{"reason"}, sensor),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.packets, c.bytes, c.drops, c.capture, c.active, c.batches, c.connected, c.share, c.tunnels, c.unopened} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	c.s.account()
	for _, p := range c.s.counts {
		for q := range p.queues {
			n := p.queues[q].packets.Load()
			if n == 0 && q > 0 {
				continue // a queue the interface does not have, or that is silent
			}
			counter(c.packets, n, p.name, strconv.Itoa(q))
			counter(c.bytes, p.queues[q].bytes.Load(), p.name, strconv.Itoa(q))
		}
		kind, _ := p.kind.Load().(string)
		for _, k := range captureKinds {
			is := 0.0
			if k == kind {
				is = 1
			}
			ch <- prometheus.MustNewConstMetric(c.capture, prometheus.GaugeValue, is, p.name, k)
		}
		for _, d := range p.drops() {
			counter(c.drops, d.count, p.name, d.reason)
		}
	}
	ch <- prometheus.MustNewConstMetric(c.active, prometheus.GaugeValue, float64(c.s.flowTotals().Active))
	tunnels, unopened := c.s.tunnels()
	for kind, n := range tunnels {
		counter(c.tunnels, n, kind)
	}
	for reason, n := range unopened {
		counter(c.unopened, n, reason)
	}
	o := c.s.shards.stats()
	counter(c.batches, o.BatchesAcked, "acked")
	counter(c.batches, o.BatchesDropped, "dropped")
	counter(c.batches, o.Resent, "resent")
	counter(c.batches, o.Moved, "moved")
	counter(c.batches, o.WindowsDropped, "window_dropped")
	for _, x := range c.s.shards.list {
		connected := 0.0
		if x.send.connected.Load() {
			connected = 1
		}
		ch <- prometheus.MustNewConstMetric(c.connected, prometheus.GaugeValue, connected, x.name)
		ch <- prometheus.MustNewConstMetric(c.share, prometheus.GaugeValue, float64(x.slots.Load())/shard.Slots, x.name)
	}
}

type drop struct {
	reason string
	count  uint64
}

// drops lists the reasons why frames were lost. A frame that the kernel had no room for is fill_empty, one
// that does not fit a frame too_large. no_carrier is what was to leave by a port whose link is down. packet_ring_full is what AF_PACKET had no room for.
func (c *portCounts) drops() []drop {
	l := c.ledger()
	fill := min(l.ring.RxFillEmpty, l.ring.RxDropped)
	return []drop{
		{"ring_full", l.ring.RxRingFull + l.xdp.Uncopied},
		{"packet_ring_full", l.packets.Dropped},
		{"fill_empty", fill},
		{"too_large", l.ring.RxDropped - fill},
		{"tx_full", c.txDropped.Load()},
		{"no_carrier", l.ring.TxDropped},
		{"no_reader", l.xdp.NoReader},
		{"lost_at_restart", l.lostAtRestart},
	}
}
