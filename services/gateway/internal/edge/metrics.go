package edge

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests *prometheus.HistogramVec // route, code
	refused  *prometheus.CounterVec   // reason
	conns    prometheus.Gauge
	dropped  *prometheus.CounterVec // reason
	expires  prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tidegate_gateway_requests_seconds", Help: "Requests by route pattern and status; of an event stream, its whole life.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, []string{"route", "code"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_gateway_refused_total", Help: "Requests refused before they reached a handler, by reason.",
		}, []string{"reason"}),
		conns: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tidegate_gateway_connections", Help: "Open connections.",
		}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_gateway_connections_refused_total", Help: "Connections closed at once, by the limit that was reached.",
		}, []string{"reason"}),
		expires: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tidegate_gateway_certificate_expires_seconds", Help: "Unix time at which the HTTPS certificate in use expires.",
		}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.refused, m.conns, m.dropped, m.expires} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of the gateway: %w", err)
		}
	}
	return m, nil
}
