package main

import (
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/config"
)

// TestRunSettings: what a service would refuse, and what the short flags overrule, is a mistake before anything starts.
func TestRunSettings(t *testing.T) {
	for args, want := range map[string]string{
		"--classify-syn-threshold=0":                       "syn-threshold",
		"--ingest-rx-ring=1000":                            "powers of two",
		"--enforce-min-prefix4=99":                         "shortest prefix",
		"--persist-max-bytes=5":                            "size cap",
		"--gateway-max-body=0":                             "body",
		"--ingest-mode=tap":                                "--ingest-mode has no effect here: use --mode",
		"--ingest-iface=c":                                 "use --iface",
		"--enforce-iface=c":                                "use --iface",
		"--enforce-enforce":                                "use --enforce",
		"--enforce-bpffs=/x":                               "use --bpffs",
		"--ingest-pcap=x.pcap":                             "use --pcap",
		"--enforce --enforce-enforce --classify-lease=1ms": "lease", // an overruled setting that says the same is none
		"--ingest-mode=inline --classify-lease=1ms":        "lease",
		"--enforce-enforce-on=c":                           "--enforce-on c is not one of the interfaces",
	} {
		_, _, err := command(t, "", append([]string{"run", "--iface=a", "--iface=b", "--check-config"}, strings.Fields(args)...)...)
		if config.ExitCode(err) != config.ExitUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("run %s: %v, want a mistake about %q", args, err, want)
		}
	}
}
