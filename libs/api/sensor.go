package api

// Sensor is an ingest instance.
type Sensor struct {
	Name       string      `json:"name"`
	Ready      bool        `json:"ready"`
	Interfaces []Interface `json:"interfaces" nullable:"false"`
	TopDst     []Talker    `json:"top_destinations" nullable:"false"`
	TopSrc     []Talker    `json:"top_sources" nullable:"false"`
}

// Interface is a captured interface.
type Interface struct {
	Name        string            `json:"name"`
	Mode        string            `json:"mode" enum:"inline,host,tap"`
	Capture     string            `json:"capture" example:"af_xdp native copy"`
	Queues      uint32            `json:"queues"`
	XDPPackets  map[string]uint64 `json:"xdp_packets" doc:"by action, and seen"`
	XDPBytes    map[string]uint64 `json:"xdp_bytes"`
	Received    uint64            `json:"received"`
	RingDrops   uint64            `json:"ring_drops"`
	Transmitted uint64            `json:"transmitted"`
}

// Talker is a heavy address now.
type Talker struct {
	Addr string  `json:"addr"`
	PPS  float64 `json:"pps"`
	BPS  float64 `json:"bps"`
}

// Node is a service instance that sends heartbeats.
type Node struct {
	Service   string `json:"service"`
	Instance  string `json:"instance"`
	Address   string `json:"address,omitempty"`
	Version   string `json:"version"`
	StartedNs Nanos  `json:"started_ns"`
	SeenNs    Nanos  `json:"seen_ns"`
}

// Service is the state of one service instance.
type Service struct {
	Service   string   `json:"service"`
	Instance  string   `json:"instance"`
	Version   string   `json:"version"`
	StartedNs Nanos    `json:"started_ns"`
	Ready     bool     `json:"ready"`
	Problems  []string `json:"problems" nullable:"false" doc:"what is not well now, one sentence each"`

	CertificateExpiresNs Nanos `json:"certificate_expires_ns,omitempty" doc:"end of the certificate for the other services, or of its authority if earlier; absent: plain text"`
}

// Ledger is what came in at each stage and what became of it.
type Ledger struct {
	Stages     []Stage `json:"stages" nullable:"false"`
	Difference int64   `json:"difference" doc:"in flight while traffic runs; 0 soon after it stops"`
}

// Stage is one equation of the ledger.
type Stage struct {
	Stage      string            `json:"stage"`
	In         uint64            `json:"in"`
	InName     string            `json:"in_name"`
	Out        map[string]uint64 `json:"out"`
	Difference int64             `json:"difference"`
}

// Status is the state of everything.
type Status struct {
	Services   []Service         `json:"services" nullable:"false"`
	Missing    []Missing         `json:"missing" nullable:"false" doc:"services that did not answer"`
	Interfaces []Interface       `json:"interfaces" nullable:"false"`
	Streams    []ClassifyStream  `json:"streams" nullable:"false" doc:"of each sensor to its classifiers"`
	Enforcing  bool              `json:"enforcing" doc:"false: rules only count what they would drop"`
	Panic      Panic             `json:"panic"`
	Database   string            `json:"database,omitempty"`
	Rows       map[string]uint64 `json:"rows,omitempty" doc:"by table"`
	Ledger     Ledger            `json:"ledger"`
}

// ClassifyStream is what a sensor has to do with one of its classifiers.
type ClassifyStream struct {
	Sensor         string  `json:"sensor"`
	Address        string  `json:"address" doc:"of the classifier, as the sensor is configured"`
	Connected      bool    `json:"connected"`
	Share          float64 `json:"share" doc:"of the networks that the classifier judges now, 0 to 1; 0 while it does not answer and others judge for it"`
	BatchesPending uint64  `json:"batches_pending" doc:"that it has not acknowledged"`
	Problem        string  `json:"problem,omitempty" doc:"why there is no stream"`
}

// Missing is a service that did not answer.
type Missing struct {
	Service string `json:"service"`
	Address string `json:"address"`
	Problem string `json:"problem"`
}
