package telemetry_test

import (
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// Command lines embed Config: its tags must say what DefaultConfig says.
func TestTagsEqualDefaults(t *testing.T) {
	var cli struct {
		Telemetry telemetry.Config `embed:""`
	}
	if _, err := config.Parse(&cli, "tidegate-ingest", "test", nil); err != nil {
		t.Fatal(err)
	}
	got := cli.Telemetry
	got.Service = "ingest"
	if want := telemetry.DefaultConfig("ingest"); got != want {
		t.Errorf("tags  %+v\nwant %+v", got, want)
	}

	t.Setenv("TIDEGATE_INGEST_METRICS_LISTEN", "127.0.0.1:9191")
	if _, err := config.Parse(&cli, "tidegate-ingest", "test", nil); err != nil {
		t.Fatal(err)
	}
	if got, want := cli.Telemetry.MetricsListen, telemetry.DefaultConfig("ingest").MetricsListen; got != want {
		t.Errorf("with the variable set: flag %q, DefaultConfig %q", got, want)
	}
}
