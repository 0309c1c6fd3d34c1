package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	"github.com/tidegate-mesh/tidegate/services/tidegate/internal/doctor"
)

type certsCmd struct {
	Dir   string   `help:"folder of the certificates" default:"/etc/tidegate/certs" type:"path"`
	Hosts []string `name:"host" help:"further host name or address that the services are reached by; repeat or separate by commas"`
	Renew bool     `help:"make the services' certificates anew though they are valid"`
	JSON  bool     `help:"print one JSON object a line"`

	NATSDir   string `name:"nats-dir" help:"the folder as a NATS server elsewhere sees it, for nats.conf (default: as it is there, else --dir)"`
	NATSStore string `name:"nats-store" help:"folder of that server's messages (default: as it is there, else /var/lib/nats)"`
}

func (c *certsCmd) Run() error {
	made, err := pki.Ensure(c.Dir, c.Hosts, c.Renew)
	for _, m := range made {
		if c.JSON {
			if err := printJSON(os.Stdout, map[string]any{"file": m.File, "expires": m.Expires.UTC(), "new": m.New}); err != nil {
				return err
			}
			continue
		}
		what := "kept"
		if m.New {
			what = "made"
		}
		fmt.Printf("%s %s (expires %s)\n", what, m.File, m.Expires.Format(time.DateOnly))
	}
	if err != nil {
		return err
	}
	return c.writeNATSConf()
}

// writeNATSConf writes the configuration of a separate nats-server beside the certificates. Who only renews them need not name
// that server's folders again.
func (c *certsCmd) writeNATSConf() error {
	file := filepath.Join(c.Dir, "nats.conf")
	old, err := os.ReadFile(file) //nolint:gosec // the operator names the folder
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read what --nats-dir and --nats-store were: %w", err)
	}
	oldDir, oldStore := bus.ServerConfPaths(string(old))
	own, err := filepath.Abs(c.Dir)
	if err != nil {
		return fmt.Errorf("certificate folder: %w", err)
	}
	dir, store := cmp.Or(c.NATSDir, oldDir, own), cmp.Or(c.NATSStore, oldStore, "/var/lib/nats")
	if !filepath.IsAbs(dir) || !filepath.IsAbs(store) {
		return config.Usagef("--nats-dir and --nats-store must be absolute: nats-server reads relative paths from where it is started")
	}
	if err := pki.WriteFile(file, []byte(bus.ServerConf(dir, store)), 0o644); err != nil {
		return err
	}
	if !c.JSON {
		fmt.Printf("made %s (nats-server -c %s)\n", file, filepath.Join(dir, "nats.conf"))
	}
	return nil
}

type doctorCmd struct {
	Ifaces []string `name:"iface" help:"interface to check; repeat or separate by commas"`
	CPUs   []int    `name:"cpus" env:"TIDEGATE_INGEST_CPUS" help:"CPUs that ingest gets as --cpus: are they those of the interfaces' queues and NUMA node?"`
	BPFFS  string   `name:"bpffs" help:"mount point of the BPF file system" default:"/sys/fs/bpf"`
	JSON   bool     `help:"print one JSON object a line"`
}

func (c *doctorCmd) Run() error {
	failed := 0
	for _, f := range doctor.Run(c.BPFFS, c.Ifaces, c.CPUs) {
		if f.Level == doctor.Fail {
			failed++
		}
		if c.JSON {
			if err := printJSON(os.Stdout, f); err != nil {
				return err
			}
			continue
		}
		fmt.Printf("%-4s  %s: %s\n", strings.ToUpper(string(f.Level)), f.Name, f.Found)
		if f.Advice != "" {
			fmt.Printf("      -> %s\n", f.Advice)
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of the checks failed: Tidegate cannot capture or enforce here as it is", failed)
	}
	return nil
}

// detachCmd undoes what the services leave on purpose: programs and maps stay pinned when they end.
type detachCmd struct {
	Ifaces []string `arg:"" name:"iface" help:"interfaces; stop the services that use them first"`
	BPFFS  string   `name:"bpffs" help:"mount point of the BPF file system" default:"/sys/fs/bpf"`
}

// Run goes on after an interface that it cannot help with: who detaches wants drops to end. A second time there is nothing to do;
// a name that no interface has is told, since the right one would stay as it is.
func (c *detachCmd) Run() error {
	var failed error
	for _, iface := range c.Ifaces {
		there, err := xdp.Pinned(c.BPFFS, iface)
		switch {
		case err != nil:
		case there:
			err = xdp.Remove(c.BPFFS, iface)
		default:
			if _, err = net.InterfaceByName(iface); err == nil {
				fmt.Printf("nothing is pinned for %s in %s\n", iface, c.BPFFS)
				continue
			}
			err = fmt.Errorf("nothing is pinned for it in %s, and: %w", c.BPFFS, err)
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("detach %s: %w", iface, err))
			continue
		}
		fmt.Println("detached", iface)
	}
	return failed
}

func openFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return config.Usagef("capture: %w", err)
	}
	return f.Close()
}
