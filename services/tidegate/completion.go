package main

import (
	"fmt"
	"sort"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish"`
}

// scripts ask the program itself for what may follow (completeCmd); where it knows nothing, the shell offers files.
var scripts = map[string]string{
	"bash": `# tab completion of tidegate for bash: source <(tidegate completion bash)
_tidegate() {
    local IFS=$'\n'
    COMPREPLY=($("$1" __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _tidegate tidegate
`,
	"zsh": `#compdef tidegate
# tab completion of tidegate for zsh: source <(tidegate completion zsh), or as _tidegate in a folder of $fpath
_tidegate() {
    local -a found
    found=(${(f)"$("${words[1]}" __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( $#found )); then
        compadd -- $found
    else
        _files
    fi
}
if [[ "$funcstack[1]" == _tidegate ]]; then
    _tidegate "$@"
else
    compdef _tidegate tidegate
fi
`,
	"fish": `# tab completion of tidegate for fish: tidegate completion fish | source
function __tidegate_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found ($words[1] __complete -- $words[2..-1] "$current" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path "$current"
    end
end
complete -c tidegate -f -a '(__tidegate_complete)'
`,
}

func (c *completionCmd) Run(t *terminal) error {
	_, err := fmt.Fprint(t.out, scripts[c.Shell])
	return err
}

// completeCmd prints what may stand in the place of the last word.
type completeCmd struct {
	Words []string `arg:"" optional:"" passthrough:""`
}

func (c *completeCmd) Run(k *kong.Context, t *terminal) error {
	words := c.Words
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	for _, w := range complete(k.Model.Node, words) {
		_, _ = fmt.Fprintln(t.out, w)
	}
	return nil
}

// complete knows commands, flags and the values of both where they are few. bash hands over --by=app as three words.
func complete(node *kong.Node, words []string) []string {
	if len(words) == 0 {
		words = []string{""}
	}
	last, words := words[len(words)-1], words[:len(words)-1]
	if last == "=" {
		last = ""
	} else if n := len(words); n > 0 && words[n-1] == "=" {
		words = words[:n-1]
	}
	place := &place{node: node}
	for _, w := range words {
		if w != "=" {
			place.pass(w)
		}
	}
	prefix := ""
	var all []string
	switch {
	case place.flag != nil:
		all = values(place.flag.Value)
	case strings.HasPrefix(last, "-") && strings.Contains(last, "="):
		name, _, _ := strings.Cut(last, "=")
		if f := place.find(name); f != nil {
			prefix, all = name+"=", values(f.Value)
		}
	case strings.HasPrefix(last, "-"):
		all = place.flags()
	default:
		all = place.words()
	}
	var found []string
	for _, w := range all {
		if w = prefix + w; strings.HasPrefix(w, last) {
			found = append(found, w)
		}
	}
	return found
}

// place is how far a command line has been read.
type place struct {
	node *kong.Node
	args int        // positional words of the command so far
	flag *kong.Flag // waits for its value
}

func (p *place) pass(word string) {
	if p.flag != nil {
		p.flag = nil
		return
	}
	if strings.HasPrefix(word, "-") {
		if f := p.find(word); f != nil && !f.IsBool() && !f.IsCounter() {
			p.flag = f
		}
		return
	}
	for _, child := range p.node.Children {
		if child.Name == word {
			p.node, p.args = child, 0
			return
		}
	}
	p.args++
}

// known are the flags of the command, of those it belongs to, and of the one it stands for by default.
func (p *place) known() (all []*kong.Flag) {
	if d := p.node.DefaultCmd; d != nil {
		all = append(all, d.Flags...)
	}
	for n := p.node; n != nil; n = n.Parent {
		all = append(all, n.Flags...)
	}
	return all
}

func (p *place) find(word string) *kong.Flag {
	for _, f := range p.known() {
		if word == "--"+f.Name || f.Short != 0 && word == "-"+string(f.Short) {
			return f
		}
	}
	return nil
}

func (p *place) flags() (names []string) {
	for _, f := range p.known() {
		if f.Hidden {
			continue
		}
		names = append(names, "--"+f.Name)
		if f.Tag.Negatable != "" {
			names = append(names, "--no-"+f.Name)
		}
	}
	sort.Strings(names)
	return names
}

// words are subcommands, or the values of the next positional word.
func (p *place) words() (words []string) {
	for _, child := range p.node.Children {
		if !child.Hidden {
			words = append(words, child.Name)
		}
	}
	if p.args < len(p.node.Positional) {
		words = append(words, values(p.node.Positional[p.args])...)
	}
	return words
}

func values(v *kong.Value) []string {
	if v.Enum == "" {
		return nil
	}
	return strings.Split(v.Enum, ",")
}
