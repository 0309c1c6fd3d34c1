package detect

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"
)

// TestTypes: Types has every type that the constants name, once.
func TestTypes(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "detect.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var named []string
	for _, d := range file.Decls {
		if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.CONST {
			for _, s := range g.Specs {
				for _, v := range s.(*ast.ValueSpec).Values {
					name, err := strconv.Unquote(v.(*ast.BasicLit).Value)
					if err != nil {
						t.Fatal(err)
					}
					named = append(named, name)
				}
			}
		}
	}
	types := Types()
	slices.Sort(named)
	slices.Sort(types)
	if len(named) < 29 || !slices.Equal(named, types) {
		t.Errorf("the constants name %v, Types has %v", named, types)
	}
}
