package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestComplete(t *testing.T) {
	for line, want := range map[string]struct {
		has, hasNot string
		only        string // exactly these
	}{
		"":                          {has: "run rules watch", hasNot: "__complete --help"},
		"ru":                        {only: "run rules"},
		"rules ":                    {only: "list add dry-run replace revoke explain"},
		"rules re":                  {only: "replace revoke"},
		"rules list --":             {has: "--json --gateway --config", hasNot: "--action"},
		"attacks --":                {has: "--active --since --json"},
		"attacks --active s":        {only: "show"},
		"rules add --no":            {only: "--no-fragment"},
		"rules add --action ":       {only: "allow drop rate-limit count"},
		"rules add --action drop ":  {only: ""},
		"rules add --json --proto ": {only: ""},
		"top --by h":                {only: "host"},
		"top --by=h":                {only: "--by=host"},
		"top --by =":                {only: "src dst app host port"},
		"top --by = a":              {only: "app"},
		"top --by = app --js":       {only: "--json"},
		"completion ":               {only: "bash zsh fish"},
		"completion bash ":          {only: ""},
		"attacks pcap x -o ":        {only: ""},
		"token issue --role a":      {only: "admin"},
		"nosuch ":                   {has: "run"},
	} {
		words := strings.Split(line, " ")
		out, _, err := command(t, "", append([]string{"__complete", "--"}, words...)...)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		got := strings.Fields(out)
		if want.has == "" && want.hasNot == "" {
			if wanted := strings.Fields(want.only); !slices.Equal(got, wanted) {
				t.Errorf("%q is completed to %q, want %q", line, got, wanted)
			}
			continue
		}
		for _, w := range strings.Fields(want.has) {
			if !slices.Contains(got, w) {
				t.Errorf("%q is not completed to %q: %q", line, w, got)
			}
		}
		for _, w := range strings.Fields(want.hasNot) {
			if slices.Contains(got, w) {
				t.Errorf("%q is completed to %q", line, w)
			}
		}
	}
}

// binary makes the test run itself as tidegate, from a folder of that name in PATH.
func binary(t *testing.T) (env []string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "tidegate")); err != nil {
		t.Fatal(err)
	}
	return append(os.Environ(), "TIDEGATE_TEST_MAIN=1", "PATH="+dir+":"+os.Getenv("PATH"))
}

// TestCompletionInShells sources the scripts in the shells; bash is on every machine that builds Tidegate.
func TestCompletionInShells(t *testing.T) {
	env := binary(t)
	for _, c := range []struct {
		shell, script string
		want          []string
	}{
		{"bash", `source <(tidegate completion bash)
			complete -p tidegate >&2 || exit 1
			try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _tidegate "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"; echo "${COMPREPLY[*]}"; }
			try tidegate ru
			try tidegate rules ''
			try tidegate top --by = h
			try tidegate rules revoke ''`,
			[]string{"run rules", "list add dry-run replace revoke explain", "host", ""}},
		{"zsh", `compdef() { :; }; compadd() { shift; print -r -- "$*"; }; _files() { print files; }
			source <(tidegate completion zsh)
			try() { words=("$@"); CURRENT=$#; _tidegate; }
			try tidegate ru
			try tidegate rules ''
			try tidegate top --by=h
			try tidegate rules revoke ''`,
			[]string{"run rules", "list add dry-run replace revoke explain", "--by=host", "files"}},
		{"fish", `tidegate completion fish | source
			complete -C 'tidegate ru' | string join ' '
			complete -C 'tidegate rules ' | string join ' '
			complete -C 'tidegate top --by=h' | string join ' '
			complete -C 'tidegate rules revoke /pro' | string join ' '
			true`,
			[]string{"rules run", "add dry-run explain list replace revoke", "--by=host", "/proc/"}},
	} {
		t.Run(c.shell, func(t *testing.T) {
			args := map[string][]string{"bash": {"--norc", "-c"}, "zsh": {"-f", "-c"}, "fish": {"--no-config", "-c"}}[c.shell]
			path, err := exec.LookPath(c.shell)
			if err != nil {
				if c.shell == "bash" || os.Getenv("TIDEGATE_CI") != "" {
					t.Fatal(err)
				}
				t.Skip("no ", c.shell, " here")
			}
			cmd := exec.Command(path, append(args, strings.ReplaceAll(c.script, "\n\t\t\t", "\n"))...)
			cmd.Env, cmd.Dir = env, t.TempDir()
			var stderr strings.Builder
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, stderr.String())
			}
			if got := strings.TrimSuffix(string(out), "\n"); got != strings.Join(c.want, "\n") {
				t.Errorf("completed to\n%s\nwant\n%s\n%s", got, strings.Join(c.want, "\n"), stderr.String())
			}
		})
	}
}
