package bus

import "testing"

func TestServerConfPaths(t *testing.T) {
	for _, want := range [][2]string{{"/etc/tidegate/certs", "/var/lib/nats"}, {`/a "b" \\c`, "/ü"}} {
		if certs, store := ServerConfPaths("# by hand\n" + ServerConf(want[0], want[1])); certs != want[0] || store != want[1] {
			t.Errorf("%q, %q, want %q", certs, store, want)
		}
	}
	if certs, store := ServerConfPaths("jetstream { store_dir: /var/lib/nats }\nca_file: x\n"); certs != "" || store != "" {
		t.Errorf("of another configuration: %q, %q", certs, store)
	}
}
