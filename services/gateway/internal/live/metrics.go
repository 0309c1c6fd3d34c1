package live

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	clients prometheus.Gauge
	sent    *prometheus.CounterVec // by event
	dropped *prometheus.CounterVec // by event: the client was too slow for them
	ended   *prometheus.CounterVec // by reason
	replays prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		clients: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tidegate_gateway_stream_clients", Help: "Clients of the event stream.",
		}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_gateway_stream_events_total", Help: "Events written to clients.",
		}, []string{"event"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_gateway_stream_dropped_total", Help: "Windows and live states that a client was too slow for.",
		}, []string{"event"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_gateway_stream_ended_total", Help: "Ends of client streams: client, slow, expired or shutdown.",
		}, []string{"reason"}),
		replays: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidegate_gateway_stream_replays_total", Help: "Times that a client was served from NATS because it was behind.",
		}),
	}
	r.MustRegister(m.clients, m.sent, m.dropped, m.ended, m.replays)
	return m
}
