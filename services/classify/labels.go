package classify

import (
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/app"
)

// payloadLabels returns the source of labellers: one application engine for all flows.
func payloadLabels() func(k flow.Key) labeller {
	engine := app.NewEngine()
	return func(k flow.Key) labeller { return payloadLabel{engine.Open(k)} }
}

// payloadLabel is a flow of internal/app as a labeller.
type payloadLabel struct{ f *app.Flow }

func (l payloadLabel) segment(direction uint8, offset uint32, data []byte) bool {
	return l.f.Segment(direction, offset, data)
}

func (l payloadLabel) result() labelled {
	r := l.f.Result()
	return labelled{
		app: r.App, host: r.Host, hostSource: r.HostSource, alpn: r.ALPN, confidence: r.Confidence, Facts: r.Facts,
	}
}

func (l payloadLabel) release() { l.f.Release() }
