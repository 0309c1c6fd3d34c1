package bustest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// olderStream: a stream without the audits, and with a subject and limits of its operator's, gets the audits and
// keeps the rest.
func olderStream(t *testing.T, s Server) {
	if s.Config.Embedded != nil {
		t.Log("the server takes no connection but the bus's own; the others show it")
		return
	}
	nc, err := nats.Connect(s.Config.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	old := jetstream.StreamConfig{
		Name: bus.StreamEvents, Subjects: []string{bus.AllAttacks, bus.AllVerdicts, bus.AllEnforcements, "tg.v1.later.>"},
		Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew, MaxBytes: 7 << 20, MaxAge: 48 * time.Hour,
		Duplicates: time.Minute, Replicas: 1,
	}
	stream, err := js.CreateStream(ctx, old)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, bus.SubjectAttack+"edge", []byte(`{"id": "kept", "revision": 1}`)); err != nil {
		t.Fatal(err)
	}
	b := Open(t, s.Config)
	if err := b.PublishAudit(ctx, &eventv1.Audit{Id: "c", Revision: 1, Gateway: "gw"}); err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := info.Config
	if want := append(slices.Clone(old.Subjects), bus.AllAudits); !slices.Equal(c.Subjects, want) {
		t.Errorf("subjects %q, want %q", c.Subjects, want)
	}
	if c.MaxBytes != old.MaxBytes || c.MaxAge != old.MaxAge || c.Duplicates != old.Duplicates || c.Discard != old.Discard {
		t.Errorf("limits changed: %+v", c)
	}
	if info.State.Msgs != 2 {
		t.Errorf("%d messages, want the attack of before and the audit", info.State.Msgs)
	}
}
