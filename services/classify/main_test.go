package classify

import (
	"testing"

	"go.uber.org/goleak"
)

// nats.go 1.49 sometimes leaves the goroutine behind that watches the publishing of an object of one message.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/nats-io/nats.go/jetstream.(*jetStream).resetPendingAcksOnReconnect"))
}
