package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"gopkg.in/yaml.v3"
)

// file resolves flags from YAML. It implements kong.Resolver.
type file struct {
	path    string
	entries map[string]*entry
	names   map[*kong.Flag][]string // keys that mean the flag, the most specific first
}

type entry struct {
	key  string // as written, sections joined by dots
	node *yaml.Node
}

// parseFile reads data and checks every key against the flags of the binary.
func parseFile(path string, data []byte, root *kong.Node, name string) (*file, error) {
	f := &file{path: path, entries: map[string]*entry{}, names: map[*kong.Flag][]string{}}
	known := map[string]*kong.Flag{}
	f.collect(root, nil, name, known)

	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	if err := decoder.Decode(&document); err != nil {
		if errors.Is(err, io.EOF) {
			return f, nil // empty
		}
		return nil, fmt.Errorf("configuration file %s: %w", path, err)
	}
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("configuration file %s: it holds more than one YAML document, use one", path)
	}
	top := document.Content[0]
	if top.Kind == yaml.ScalarNode && top.Tag == "!!null" {
		return f, nil // comments only
	}
	if top.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("configuration file %s:%d: expected keys with values", path, top.Line)
	}
	if err := f.walk(top, "", "", known, 0); err != nil {
		return nil, err
	}
	return f, nil
}

// collect lists the keys of all flags: the flag's name alone, below its command's name, and below the binary's name,
// so that one file can hold the sections of several binaries' worth of flags without repeating itself.
func (f *file) collect(node *kong.Node, commands []string, name string, known map[string]*kong.Flag) {
	for _, flag := range node.Flags {
		if flag.Name == "help" || flag.Name == configFlag || flag.Name == checkFlag || flag.Name == versionFlag {
			continue
		}
		var keys []string
		if len(commands) > 0 {
			keys = append(keys, strings.Join(commands, "-")+"-"+flag.Name)
		}
		keys = append(keys, name+"-"+flag.Name, flag.Name)
		f.names[flag] = keys
		for _, key := range keys {
			known[normal(key)] = flag
		}
	}
	for _, child := range node.Children {
		f.collect(child, append(commands[:len(commands):len(commands)], child.Name), name, known)
	}
}

// maxDepth is far above what a flag's name can be split into; a section that holds itself, by an alias, has no end.
const maxDepth = 16

// walk descends into sections. prefix is the normalised path with its hyphen, written the path for messages.
func (f *file) walk(mapping *yaml.Node, prefix, written string, known map[string]*kong.Flag, depth int) error {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		keyNode, value := mapping.Content[i], follow(mapping.Content[i+1])
		key, shown := prefix+normal(keyNode.Value), written+keyNode.Value
		flag := known[key]
		if value.Kind == yaml.MappingNode && (flag == nil || !flag.IsMap()) &&
			(len(value.Content) > 0 || flag == nil && section(key, known)) { // an empty one of no meaning is a mistake
			if depth == maxDepth {
				return fmt.Errorf("configuration file %s:%d: sections are nested too deep: %q", f.path, keyNode.Line, shown)
			}
			if err := f.walk(value, key+"-", shown+".", known, depth+1); err != nil {
				return err
			}
			continue
		}
		if flag == nil {
			hint := "--help lists the flags that are its keys"
			if n := Nearest(key, slices.Collect(maps.Keys(known))); n != "" {
				hint = fmt.Sprintf("did you mean %q?", n)
			}
			return fmt.Errorf("configuration file %s:%d: unknown key %q: %s", f.path, keyNode.Line, shown, hint)
		}
		if earlier := f.entries[key]; earlier != nil {
			return fmt.Errorf("configuration file %s:%d: key %q repeats key %q", f.path, keyNode.Line, shown, earlier.key)
		}
		f.entries[key] = &entry{key: shown, node: value}
	}
	return nil
}

// section tells whether flags begin with the key.
func section(key string, known map[string]*kong.Flag) bool {
	for k := range known {
		if strings.HasPrefix(k, key+"-") {
			return true
		}
	}
	return false
}

// Validate is done at loading, where line numbers are at hand.
func (f *file) Validate(*kong.Application) error { return nil }

// Resolve gives the file's value of a flag in the textual form of the command line, nil when it has none or when an
// environment variable, which wins, is set.
func (f *file) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	for _, variable := range flag.Envs {
		if _, set := os.LookupEnv(variable); set {
			return nil, nil
		}
	}
	for _, key := range f.names[flag] {
		if e := f.entries[normal(key)]; e != nil {
			value, err := text(flag, e.node)
			if err != nil {
				return nil, fmt.Errorf("configuration file %s:%d: key %q: %w", f.path, e.node.Line, e.key, err)
			}
			return value, nil
		}
	}
	return nil, nil
}

// text renders a YAML value as a flag's: kong's own mappers then parse both alike.
func text(flag *kong.Flag, node *yaml.Node) (any, error) {
	switch {
	case node.Kind == yaml.ScalarNode && node.Tag == "!!null":
		return nil, errors.New("it has no value: give one or remove the key")
	case node.Kind == yaml.ScalarNode:
		return node.Value, nil
	case node.Kind == yaml.SequenceNode && flag.IsSlice():
		items := make([]string, 0, len(node.Content))
		for _, item := range node.Content {
			item = follow(item)
			if item.Kind != yaml.ScalarNode {
				return nil, errors.New("its list must hold plain values")
			}
			items = append(items, item.Value)
		}
		return join(items, flag.Tag.Sep), nil
	case node.Kind == yaml.MappingNode && flag.IsMap():
		var items []string
		for i := 0; i+1 < len(node.Content); i += 2 {
			value := follow(node.Content[i+1])
			if value.Kind != yaml.ScalarNode {
				return nil, errors.New("its mapping must hold plain values")
			}
			items = append(items, node.Content[i].Value+"="+value.Value)
		}
		return join(items, flag.Tag.MapSep), nil
	default:
		return nil, errors.New("it takes one plain value")
	}
}

// join is the inverse of kong's splitting at separators, which a backslash escapes. A flag without a separator (-1) gets
// the items as they are.
func join(items []string, separator rune) any {
	if separator == -1 {
		list := make([]any, len(items))
		for i, item := range items {
			list[i] = item
		}
		return list
	}
	for i, item := range items {
		items[i] = strings.ReplaceAll(item, string(separator), `\`+string(separator))
	}
	return strings.Join(items, string(separator))
}

func follow(node *yaml.Node) *yaml.Node {
	for node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	return node
}

func normal(key string) string { return strings.ToLower(strings.ReplaceAll(key, "_", "-")) }
