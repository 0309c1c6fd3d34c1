package e2e

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/tidegate-mesh/tidegate/"

// TestImports: proto ← libs ← services/* ← services/tidegate, and services never import each other.
func TestImports(t *testing.T) {
	files := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" {
			return err
		}
		rel := filepath.ToSlash(strings.TrimPrefix(path, "../"))
		layer := layerOf(rel)
		if layer == "" {
			return nil
		}
		files++
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range f.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			target, ours := strings.CutPrefix(p, module)
			if ours && !allowed(layer, layerOf(target+"/x.go")) {
				t.Errorf("%s imports %s: %s must not know it", rel, p, layer)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 100 {
		t.Fatalf("only %d files looked at", files)
	}
}

// layerOf is proto, libs, e2e or services/NAME, "" for anything else.
func layerOf(path string) string {
	parts := strings.Split(path, "/")
	switch {
	case len(parts) < 2:
		return ""
	case parts[0] == "proto" || parts[0] == "libs" || parts[0] == "e2e":
		return parts[0]
	case parts[0] == "services" && len(parts) > 2:
		return "services/" + parts[1]
	}
	return ""
}

func allowed(from, to string) bool {
	switch from {
	case "proto":
		return to == "proto"
	case "libs":
		return to == "proto" || to == "libs"
	case "services/tidegate":
		return to != "e2e"
	case "e2e":
		return !strings.HasPrefix(to, "services/")
	}
	return to == "proto" || to == "libs" || to == from
}
