package config

import (
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
)

// Table is the markdown table of the flags of a struct of kong tags, as Parse names them: flag, environment variable,
// default, meaning. Flags of subcommands are left out.
func Table(cli any, name string) (string, error) {
	k, err := kong.New(cli, kong.Name(name), kong.Embed(&general{}), kong.PostBuild(func(k *kong.Kong) error {
		nameVariables(k.Model.Node, variablePrefix(name))
		return nil
	}))
	if err != nil {
		return "", fmt.Errorf("command line of %s: %w", name, err)
	}
	var b strings.Builder
	b.WriteString("| flag | environment | default | |\n|---|---|---|---|\n")
	cell := strings.NewReplacer("|", `\|`, "\n", " ").Replace
	for _, flag := range k.Model.Flags {
		if flag.Hidden || flag.Name == "help" || flag.Name == versionFlag {
			continue
		}
		variable, value := "–", "–"
		if len(flag.Envs) > 0 {
			variable = "`" + strings.Join(flag.Envs, "`, `") + "`"
		}
		if flag.HasDefault && flag.Default != "" {
			value = "`" + cell(flag.Default) + "`"
		}
		fmt.Fprintf(&b, "| `--%s` | %s | %s | %s |\n", flag.Name, variable, value, cell(strings.TrimSuffix(flag.Help, ".")))
	}
	return b.String(), nil
}
