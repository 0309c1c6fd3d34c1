package xdp

import (
	"errors"
	"net"
	"os"
	"testing"
)

// A veth has XDP of its own and copies frames; the loopback interface has neither.
func TestDriverOf(t *testing.T) {
	r := newRig(t, 1)
	for name, want := range map[string]Driver{"lo": {}, "left": {Native: true}} {
		must(t, r.gate.Do(func() error {
			i, err := net.InterfaceByName(name)
			if err != nil {
				return err
			}
			d, err := DriverOf(i.Index)
			var old *FeatureError
			if errors.As(err, &old) && os.Getenv("TIDEGATE_CI") == "" {
				t.Skip(err)
			}
			if err != nil {
				return err
			}
			if d != want {
				t.Errorf("%s: %+v, want %+v", name, d, want)
			}
			return nil
		}))
	}
}
