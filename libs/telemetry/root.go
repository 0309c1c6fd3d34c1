package telemetry

import (
	"context"
	"encoding/binary"
	"math/rand/v2"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// NewRoot is the traceparent of a sampled root span that has not been made yet. Spans can begin below it at once;
// the process that knows the root's times makes it later, with StartRoot.
func NewRoot() (traceparent string) {
	id, span := randomIDs{}.NewIDs(context.Background())
	return Inject(trace.ContextWithSpanContext(context.Background(),
		trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: span, TraceFlags: trace.FlagsSampled})))
}

// StartRoot begins the root span that NewRoot named, possibly in another process. A malformed traceparent gives a span
// that is not recorded.
func StartRoot(tracer trace.Tracer, traceparent, name string, options ...trace.SpanStartOption) trace.Span {
	root := trace.SpanContextFromContext(Extract(context.Background(), traceparent))
	if !root.IsValid() {
		return trace.SpanFromContext(context.Background())
	}
	_, span := tracer.Start(context.WithValue(AlwaysSample(context.Background()), rootKey{}, root), name, options...)
	return span
}

type rootKey struct{}

// randomIDs gives spans random ids, but a root of StartRoot the ids it was promised.
type randomIDs struct{}

var _ sdktrace.IDGenerator = randomIDs{}

func (g randomIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	if root, ok := ctx.Value(rootKey{}).(trace.SpanContext); ok {
		return root.TraceID(), root.SpanID()
	}
	var id trace.TraceID
	for !id.IsValid() {
		binary.NativeEndian.PutUint64(id[:8], rand.Uint64()) //nolint:gosec // ids have to be distinct, not secret
		binary.NativeEndian.PutUint64(id[8:], rand.Uint64()) //nolint:gosec // likewise
	}
	return id, g.NewSpanID(ctx, id)
}

func (randomIDs) NewSpanID(context.Context, trace.TraceID) (id trace.SpanID) {
	for !id.IsValid() {
		binary.NativeEndian.PutUint64(id[:], rand.Uint64()) //nolint:gosec // likewise
	}
	return id
}
