package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

const tracerName = "github.com/tidegate-mesh/tidegate"

// traceparentField is the header of W3C Trace Context, section 3.2.
const traceparentField = "traceparent"

// Propagator is the one format between services: W3C Trace Context.
func Propagator() propagation.TextMapPropagator { return propagation.TraceContext{} }

// Inject gives the traceparent of ctx's span, or "" without one.
func Inject(ctx context.Context) (traceparent string) {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier[traceparentField]
}

// Extract makes the span named by traceparent the remote parent of spans begun with the result. An empty or malformed
// traceparent leaves ctx as it is.
func Extract(ctx context.Context, traceparent string) context.Context {
	if traceparent == "" {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{traceparentField: traceparent})
}

// TraceID is the 32 hexadecimal digits of ctx's trace, or "" without one.
func TraceID(ctx context.Context) string {
	if id := trace.SpanContextFromContext(ctx).TraceID(); id.IsValid() {
		return id.String()
	}
	return ""
}

type alwaysKey struct{}

// AlwaysSample marks ctx: spans begun with it are sampled whatever the ratio and the parent say. Remote children
// follow, since the sampled flag travels in the traceparent.
func AlwaysSample(ctx context.Context) context.Context {
	return context.WithValue(ctx, alwaysKey{}, true)
}

// sampler obeys the mark of AlwaysSample, then the parent, then the ratio.
type sampler struct {
	fallback sdktrace.Sampler
}

func newSampler(ratio float64) sdktrace.Sampler {
	return sampler{fallback: sdktrace.ParentBased(sdktrace.TraceIDRatioBased(ratio))}
}

func (s sampler) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	if marked, _ := p.ParentContext.Value(alwaysKey{}).(bool); marked {
		return sdktrace.SamplingResult{
			Decision:   sdktrace.RecordAndSample,
			Tracestate: trace.SpanContextFromContext(p.ParentContext).TraceState(),
		}
	}
	return s.fallback.ShouldSample(p)
}

func (s sampler) Description() string { return "TidegateSampler{" + s.fallback.Description() + "}" }

// localProvider gives spans ids and sampling decisions, without an exporter: verdicts carry a trace id even when
// nobody collects traces.
func localProvider(cfg Config) trace.TracerProvider {
	return sdktrace.NewTracerProvider(sdktrace.WithSampler(newSampler(cfg.SampleRatio)), sdktrace.WithIDGenerator(randomIDs{}))
}

// exportEndpoint is the configured receiver, or that of the standard environment variables.
func exportEndpoint(cfg Config) string {
	if cfg.OTLPEndpoint != "" {
		return cfg.OTLPEndpoint
	}
	if endpoint := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"); endpoint != "" {
		return endpoint
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
}

// spanQueue is how many finished spans may wait for the receiver. An attack on many targets at once leaves thousands
// within a second; a span takes about 1 KiB.
const spanQueue = 16_384

// newProvider exports in batches to an OTLP gRPC receiver; plain text unless the endpoint begins with https://.
func newProvider(ctx context.Context, cfg Config, endpoint string, t *Telemetry) (*sdktrace.TracerProvider, error) {
	giveUp, cancel := context.WithCancel(context.WithoutCancel(ctx))
	t.core.giveUp = cancel
	var options []otlptracegrpc.Option
	switch scheme, _, ok := strings.Cut(endpoint, "://"); {
	case !ok:
		options = append(options, otlptracegrpc.WithEndpoint(endpoint), otlptracegrpc.WithInsecure())
	case scheme == "http" || scheme == "https":
		options = append(options, otlptracegrpc.WithEndpointURL(endpoint))
	default:
		return nil, fmt.Errorf("trace receiver %q: use host:port, http://host:port or https://host:port", endpoint)
	}
	exporter, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("set up trace export to %s: %w", endpoint, err)
	}
	version, _ := Build()
	// Keys of the OpenTelemetry semantic conventions, "service".
	described := resource.NewSchemaless(
		attribute.String("service.name", tracedName(cfg.Service)),
		attribute.String("service.namespace", "tidegate"),
		attribute.String("service.instance.id", cfg.Instance),
		attribute.String("service.version", version),
	)
	return sdktrace.NewTracerProvider(
		sdktrace.WithSampler(newSampler(cfg.SampleRatio)),
		sdktrace.WithIDGenerator(randomIDs{}),
		sdktrace.WithResource(described),
		sdktrace.WithBatcher(&countingExporter{SpanExporter: exporter, t: t, endpoint: endpoint, giveUp: giveUp},
			sdktrace.WithBatchTimeout(time.Second),
			sdktrace.WithMaxQueueSize(spanQueue),
			sdktrace.WithExportTimeout(10*time.Second)),
	), nil
}

// tracedName is a service's name beside those of other systems; the all-in-one is tidegate already.
func tracedName(service string) string {
	if service == "tidegate" {
		return service
	}
	return "tidegate-" + strings.TrimPrefix(service, "tidegate-")
}

// countingExporter counts failed exports instead of handing them to OpenTelemetry's process-wide error handler, and
// logs the first of a minute: a receiver may be down for days.
type countingExporter struct {
	sdktrace.SpanExporter
	t        *Telemetry
	endpoint string
	giveUp   context.Context // ended by Run: exports that still try then fail at once
	lastLog  atomic.Int64    // Unix seconds
}

func (e *countingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.giveUp, cancel)()
	err := e.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		return nil
	}
	e.t.CountError("otlp_export")
	now, last := time.Now().Unix(), e.lastLog.Load()
	if now-last >= 60 && e.lastLog.CompareAndSwap(last, now) {
		e.t.Log.Warn("trace export failed, spans are lost", "endpoint", e.endpoint, "spans", len(spans), "error", err)
	}
	return nil
}

// traceHandler adds trace_id and span_id to records logged with a context that has a span.
type traceHandler struct{ slog.Handler }

func (h traceHandler) Handle(ctx context.Context, r slog.Record) error {
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		r = r.Clone()
		r.AddAttrs(slog.String("trace_id", span.TraceID().String()), slog.String("span_id", span.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h traceHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return traceHandler{h.Handler.WithAttrs(attrs)}
}

func (h traceHandler) WithGroup(name string) slog.Handler {
	return traceHandler{h.Handler.WithGroup(name)}
}
