// Command tidegate is the all-in-one and the command line: it runs all services in one process, shows the whole on a
// test link of its own, replays captures, and reads and changes what a gateway answers for.
package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/alecthomas/kong"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

type cli struct {
	Run    runCmd    `cmd:"" help:"run all services in one process on a real interface, until a signal"`
	Demo   demoCmd   `cmd:"" help:"build a test link, send benign and attack traffic through it, show what happens"`
	Lab    labCmd    `cmd:"" help:"build the demo's test link and send its traffic, for services that run elsewhere on this machine"`
	Replay replayCmd `cmd:"" help:"classify the flows of captures, and with --detect find attacks; offline, deterministic"`

	Login  loginCmd  `cmd:"" help:"store the address and the token of a gateway for the commands below"`
	Logout logoutCmd `cmd:"" help:"forget them"`
	Whoami whoamiCmd `cmd:"" help:"say which gateway is asked, and as whom"`

	Status     statusCmd     `cmd:"" help:"state of every service, and the ledger"`
	Attacks    attacksCmd    `cmd:"" help:"list attacks, show one, get its packets"`
	Verdicts   verdictsCmd   `cmd:"" help:"list what was decided, or show one decision with its evidence"`
	Rules      rulesCmd      `cmd:"" help:"list, add, try out, replace, revoke and explain rules"`
	Lists      listsCmd      `cmd:"" help:"lists of many addresses or domains to drop, limit, allow or count: from files or HTTPS"`
	Panic      panicCmd      `cmd:"" help:"take away every drop at once, hold the automatic ones"`
	Flows      flowsCmd      `cmd:"" help:"list flows"`
	Top        topCmd        `cmd:"" help:"the heaviest applications, hosts, addresses or ports"`
	Timeseries timeseriesCmd `cmd:"" help:"traffic over time"`
	Capture    captureCmd    `cmd:"" help:"capture frames that a sensor receives now, by tcpdump's expressions (role operator)"`
	Watch      watchCmd      `cmd:"" help:"follow attacks and verdicts as they happen, until a signal"`
	Groups     groupsCmd     `cmd:"" help:"the groups of protected prefixes and their thresholds"`
	Sensors    sensorsCmd    `cmd:"" help:"the sensors and their interfaces"`
	Nodes      nodesCmd      `cmd:"" help:"the instances of all services"`
	Ledger     ledgerCmd     `cmd:"" help:"what came in and what became of it"`
	Audit      auditCmd      `cmd:"" help:"who changed what (role admin)"`

	Token      tokenCmd      `cmd:"" help:"make the token key of an installation without an identity provider, and sign tokens"`
	Certs      certsCmd      `cmd:"" help:"make a local authority and a certificate for each service"`
	Prepare    prepareCmd    `cmd:"" help:"make what the containers of one machine need before their first start; what is there is kept"`
	Doctor     doctorCmd     `cmd:"" help:"check what this machine can do, and say what to change"`
	Detach     detachCmd     `cmd:"" help:"take the XDP program and its pinned rules off interfaces"`
	Completion completionCmd `cmd:"" help:"print the script for tab completion in a shell"`
	Version    versionCmd    `cmd:"" help:"print version and revision"`

	Complete completeCmd `cmd:"" name:"__complete" hidden:""`
}

type versionCmd struct{}

func (versionCmd) Run() error {
	version, revision := telemetry.Build()
	fmt.Println("tidegate", version, revision)
	return nil
}

// terminal is where a command reads and writes.
type terminal struct {
	in       *os.File
	out, err io.Writer
}

func run(args []string, t *terminal) error {
	k, err := config.Parse(&cli{}, "tidegate", "Sees, judges and stops network traffic at the edge.", args, kong.Bind(t))
	if err != nil {
		return err
	}
	return told(k.Run())
}

// told turns a refusal of the gateway into what the user reads: the request's id finds it in the gateway's log, and
// what the gateway could not read is a mistake of the command line.
func told(err error) error {
	var p *api.Problem
	if !errors.As(err, &p) {
		return err
	}
	if p.RequestID != "" {
		err = fmt.Errorf("%w (request %s)", err, p.RequestID)
	}
	if p.Status == http.StatusBadRequest || p.Status == http.StatusUnprocessableEntity {
		return config.Usagef("%w", err)
	}
	return err
}

func main() {
	if err := run(os.Args[1:], &terminal{in: os.Stdin, out: os.Stdout, err: os.Stderr}); err != nil {
		os.Exit(config.Report(os.Stderr, "tidegate", err))
	}
}
