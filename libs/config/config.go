// Package config reads a command line, the environment and a YAML file into one struct of kong tags.
//
// What is set more explicitly wins: flag, then environment variable, then file, then the tag's default. In the file, a
// key is a flag's name; sections nest, so that `log: {level: debug}` and `log-level: debug` mean the same, and
// underscores may stand for hyphens. A key that no flag has is an error.
package config

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// Exit statuses of every binary.
const (
	ExitRuntime = 1
	ExitUsage   = 2
)

// UsageError is a mistake of the caller in flags, environment or file.
type UsageError struct{ err error }

// Usagef makes a UsageError, for checks of commands that the tags cannot express.
func Usagef(format string, args ...any) error {
	return &UsageError{fmt.Errorf(format, args...)}
}

func (e *UsageError) Error() string { return e.err.Error() }
func (e *UsageError) Unwrap() error { return e.err }

// ExitCode is the exit status for a main's error: 0 for nil, 2 for usage, 1 for everything else.
func ExitCode(err error) int {
	var usage *UsageError
	var parse *kong.ParseError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage), errors.As(err, &parse):
		return ExitUsage
	default:
		return ExitRuntime
	}
}

// Report writes a main's error to w as "program: sentence" and returns the exit status. A service's own name, which its
// group or its checks put before the sentence, is not repeated behind tidegate-NAME.
func Report(w io.Writer, program string, err error) int {
	if err != nil {
		sentence := err.Error()
		if _, name, ok := strings.Cut(program, "-"); ok {
			for strings.HasPrefix(sentence, name+": ") {
				sentence = strings.TrimPrefix(sentence, name+": ")
			}
		}
		_, _ = fmt.Fprintf(w, "%s: %s\n", program, sentence)
	}
	return ExitCode(err)
}

// general are the flags that every binary has.
type general struct {
	Config      string `name:"config" placeholder:"FILE" help:"YAML file; flags and environment win over it."`
	CheckConfig bool   `name:"check-config" env:"-" help:"Check flags, environment and file, then exit with status 0, or 2 on a mistake."`

	Version kong.VersionFlag `name:"version" env:"-" help:"Print version and revision, then exit."`
}

const (
	configFlag  = "config"
	checkFlag   = "check-config"
	versionFlag = "version"
)

// Parse fills cli, a pointer to a struct of kong tags, from args (without the program's name), environment and file.
//
// name is the binary's, with or without the prefix "tidegate-". A flag without an env tag takes the variable
// TIDEGATE_<NAME>_<FLAG> (TIDEGATE_<FLAG> when name is "tidegate"); env:"-" gives it none. Parse adds --config,
// --check-config and --version. --help, --check-config and --version end the process with status 0. Validate methods of the structs are
// called as kong does. Errors of the caller are UsageErrors of one sentence; an error of another type is a mistake in the
// tags.
func Parse(cli any, name, description string, args []string, opts ...kong.Option) (*kong.Context, error) {
	extra := &general{}
	version, revision := telemetry.Build()
	loaded := false
	options := append([]kong.Option{
		kong.Name(name),
		kong.Description(description),
		kong.Embed(extra),
		kong.Vars{"version": name + " " + version + " " + revision},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.PostBuild(func(k *kong.Kong) error {
			nameVariables(k.Model.Node, variablePrefix(name))
			return nil
		}),
		// kong calls the hook for each element of the command line.
		kong.WithBeforeResolve(func(ctx *kong.Context) error {
			if loaded {
				return nil
			}
			loaded = true
			// The variables of the all-in-one begin as those of every service do.
			if name != "tidegate" {
				if err := checkVariables(ctx.Model.Node, variablePrefix(name)); err != nil {
					return err
				}
			}
			return load(ctx, name)
		}),
	}, opts...)
	k, err := kong.New(cli, options...)
	if err != nil {
		return nil, fmt.Errorf("command line of %s: %w", name, err)
	}
	ctx, err := k.Parse(args)
	if err == nil {
		err = checkShared(ctx.Flags())
	}
	if err != nil {
		return nil, &UsageError{err}
	}
	if extra.CheckConfig {
		_, _ = fmt.Fprintln(k.Stdout, "configuration is valid")
		k.Exit(0)
	}
	return ctx, nil
}

// checkShared checks what several binaries have the same flags for: addresses to listen on, of which some may be empty, and
// telemetry's share.
func checkShared(flags []*kong.Flag) error {
	for _, flag := range flags {
		switch v := flag.Target.Interface().(type) {
		case string:
			if v == "" || flag.Name != "listen" && !strings.HasSuffix(flag.Name, "-listen") {
				continue
			}
			_, port, err := net.SplitHostPort(v)
			if err == nil {
				_, err = net.LookupPort("tcp", port)
			}
			if err != nil {
				return fmt.Errorf("--%s %s: use HOST:PORT, as 127.0.0.1:9090 (%w)", flag.Name, v, err)
			}
		case float64:
			if flag.Name == "sample-ratio" && !(v >= 0 && v <= 1) {
				return fmt.Errorf("--%s %g: use 0 to 1", flag.Name, v)
			}
		}
	}
	return nil
}

// load reads the file that --config or its variable names, if any.
func load(ctx *kong.Context, name string) error {
	for _, flag := range ctx.Model.Flags {
		if flag.Name != configFlag {
			continue
		}
		path, _ := ctx.FlagValue(flag).(string)
		if path == "" {
			return nil
		}
		data, err := os.ReadFile(path) //nolint:gosec // the operator names the file
		if err != nil {
			return fmt.Errorf("configuration file: %w", err)
		}
		f, err := parseFile(path, data, ctx.Model.Node, shortName(name))
		if err != nil {
			return err
		}
		ctx.AddResolver(f)
		return nil
	}
	return nil
}

func shortName(name string) string { return strings.TrimPrefix(name, "tidegate-") }

func variablePrefix(name string) string {
	if name == "tidegate" {
		return "TIDEGATE_"
	}
	return "TIDEGATE_" + upper(shortName(name)) + "_"
}

func upper(name string) string {
	return strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(name))
}

// nameVariables gives the flags of a command and its subcommands their environment variables.
func nameVariables(node *kong.Node, prefix string) {
	for _, flag := range node.Flags {
		switch {
		case flag.Name == "help":
		case len(flag.Envs) == 1 && flag.Envs[0] == "-":
			flag.Envs, flag.Tag.Envs = nil, nil
		case len(flag.Envs) == 0:
			flag.Envs = []string{prefix + upper(flag.Name)}
			flag.Tag.Envs = flag.Envs
		}
	}
	for _, child := range node.Children {
		nameVariables(child, prefix)
	}
}
