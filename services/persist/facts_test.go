package persist

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
)

// TestFacts sends what the classifier read from flows to the database and asks for it by each filter.
func TestFacts(t *testing.T) {
	eachDatabase(t, func(t *testing.T, cfg Config) {
		r := newRig(t, cfg)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		tls, dns, plain := record(1, 0), record(1, 1), record(1, 2)
		tls.Ja3, tls.Ja4, tls.TlsVersion, tls.Confidence = "e7d705a3286e19ea42f587b344ee6865", "t10d070600_c50f5591e341_1a3805c3aa63", "1.0", "payload"
		tls.HostSource, tls.Risks = "dns", []string{"obsolete_tls", "unexpected_port"}
		tls.Tcp = &eventv1.TcpFacts{RttClientUs: 310, RttServerUs: 1<<32 - 1, RetransmitsFwd: 1<<32 - 1}
		plain.Tcp = &eventv1.TcpFacts{} // measured, and nothing there; of dns nothing was measured
		dns.DnsType, dns.DnsRcode, dns.DnsAnswers = "A", "NOERROR", []string{"www.example.org", "192.0.2.1"}
		dns.Confidence, dns.Risks = "port", []string{"malformed"}
		tls.Tunnel = 1<<32 - 1 // the others come from a sensor that knows none
		plain.UserAgent, plain.HttpMethod, plain.Hassh, plain.Confidence = "curl/8\x00", "GET", "b12d2871a1189eff20364cf5333619ee", "payload"
		if _, err := r.bus.PublishFlows(ctx, &eventv1.FlowRecords{Sensor: "edge-1", Epoch: 42, Batch: 1, Records: []*eventv1.FlowRecord{tls, dns, plain}}); err != nil {
			t.Fatal(err)
		}
		r.until("the flows", func(st *queryv1.StatusResponse) bool { return ledger(st)["records_committed"] == 3 })
		plain.UserAgent = "curl/8\uFFFD" // what databases can hold
		all := []*eventv1.FlowRecord{plain, dns, tls}
		for _, c := range []struct {
			q    *queryv1.ListFlowsRequest
			want []*eventv1.FlowRecord
		}{
			{&queryv1.ListFlowsRequest{}, all},
			{&queryv1.ListFlowsRequest{Ja3: tls.Ja3}, all[2:]},
			{&queryv1.ListFlowsRequest{Ja4: tls.Ja4}, all[2:]},
			{&queryv1.ListFlowsRequest{Hassh: plain.Hassh}, all[:1]},
			{&queryv1.ListFlowsRequest{Confidence: "port"}, all[1:2]},
			{&queryv1.ListFlowsRequest{Confidence: "payload", Risk: "unexpected_port"}, all[2:]},
			{&queryv1.ListFlowsRequest{Risk: "malformed"}, all[1:2]},
			{&queryv1.ListFlowsRequest{Risk: "dns_tunnel"}, nil},
		} {
			resp, err := r.client.ListFlows(ctx, c.q)
			if err != nil || len(resp.GetFlows()) != len(c.want) {
				t.Errorf("%v: %d flows, expected %d, %v", c.q, len(resp.GetFlows()), len(c.want), err)
				continue
			}
			for i, got := range resp.GetFlows() {
				if !proto.Equal(got, c.want[i]) {
					t.Errorf("%v: got\n%v, expected\n%v", c.q, got, c.want[i])
				}
			}
		}
		top, err := r.client.Top(ctx, &queryv1.TopRequest{By: "app", Risk: "obsolete_tls"})
		if err != nil || len(top.GetRows()) != 1 || top.GetRows()[0].GetFlows() != 1 {
			t.Errorf("top of flows with a risk: %v, %v", top, err)
		}
		if _, err := r.client.ListFlows(ctx, &queryv1.ListFlowsRequest{Risk: "weather"}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a risk that is none: %v", err)
		}
	})
}
