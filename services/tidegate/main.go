// Command tidegate is the all-in-one and the command line: it runs ingest, classify, enforce and persist
// in one process, shows the whole on a test link of its own, replays captures, and asks the services.
package main

import (
	"fmt"
	"os"

	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

type cli struct {
	Run     runCmd     `cmd:"" help:"run all services in one process on a real interface, until a signal"`
	Demo    demoCmd    `cmd:"" help:"build a test link, send benign and attack traffic through it, show what happens"`
	Replay  replayCmd  `cmd:"" help:"classify the flows of captures, and with --detect find attacks; offline, deterministic"`
	Rules   rulesCmd   `cmd:"" help:"list, add, revoke and explain rules"`
	Attacks attacksCmd `cmd:"" help:"list attacks"`
	Flows   flowsCmd   `cmd:"" help:"list flows"`
	Top     topCmd     `cmd:"" help:"the heaviest applications, hosts, addresses or ports"`
	Status  statusCmd  `cmd:"" help:"state of every service, and the ledger"`
	Certs   certsCmd   `cmd:"" help:"make a local authority and a certificate for each service"`
	Doctor  doctorCmd  `cmd:"" help:"check what this machine can do, and say what to change"`
	Detach  detachCmd  `cmd:"" help:"take the XDP program and its pinned rules off interfaces"`
	Version versionCmd `cmd:"" help:"print version and revision"`
}

type versionCmd struct{}

func (versionCmd) Run() error {
	version, revision := telemetry.Build()
	fmt.Println("tidegate", version, revision)
	return nil
}

func run(args []string) error {
	ctx, err := config.Parse(&cli{}, "tidegate", "Sees, judges and stops network traffic at the edge.", args)
	if err != nil {
		return err
	}
	return ctx.Run()
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tidegate:", err)
		os.Exit(config.ExitCode(err))
	}
}
