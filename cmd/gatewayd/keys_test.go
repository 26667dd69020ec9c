package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"gatewayd/internal/config"
)

// notOfUse are fields that the wiring need not look at, with the reason.
var notOfUse = map[string]string{
	"Desired.Allow":      "config itself refuses what is not in it",
	"Address.TLS":        "Address.String has it",
	"Address.WebSocket":  "Address.String has it",
	"Problem.File":       "Problem.String has it",
	"Problem.Line":       "Problem.String has it",
	"ACLRule.User":       "converted as a whole",
	"ACLRule.Publish":    "converted as a whole",
	"ACLRule.Subscribe":  "converted as a whole",
	"ListenTLS.Cert":     "converted as a whole",
	"ListenTLS.Key":      "converted as a whole",
	"ListenTLS.ClientCA": "converted as a whole",
	"BrokerTLS.CA":       "converted as a whole",
	"BrokerTLS.Cert":     "converted as a whole",
	"BrokerTLS.Key":      "converted as a whole",
}

// A key that the file may hold and nobody looks at is a lie to whoever wrote it.
// Comparing an old configuration with a new one does not count as looking.
func TestEveryKeyOfTheFileIsLookedAt(t *testing.T) {
	used := fieldsUsed(t)
	seen := make(map[reflect.Type]bool)
	fields := 0
	var walk func(t reflect.Type)
	walk = func(v reflect.Type) {
		switch v.Kind() {
		case reflect.Slice, reflect.Map, reflect.Pointer:
			walk(v.Elem())
			return
		}
		if v.Kind() != reflect.Struct || v.PkgPath() != "gatewayd/internal/config" || seen[v] {
			return
		}
		seen[v] = true
		for i := range v.NumField() {
			f := v.Field(i)
			if !f.IsExported() {
				continue
			}
			fields++
			name := v.Name() + "." + f.Name
			if _, excused := notOfUse[name]; !used[name] && !excused {
				t.Errorf("config.%s is read from the file and used nowhere", name)
			} else if used[name] && excused {
				t.Errorf("config.%s is used: take it out of notOfUse", name)
			}
			walk(f.Type)
		}
	}
	walk(reflect.TypeFor[config.Config]())
	for name := range notOfUse {
		if kind, field, _ := strings.Cut(name, "."); !hasField(seen, kind, field) {
			t.Errorf("config.%s is not there any more", name)
		}
	}
	if fields < 90 {
		t.Errorf("only %d fields found", fields)
	}
}

func hasField(all map[reflect.Type]bool, kind, field string) bool {
	for v := range all {
		if v.Name() == kind {
			_, ok := v.FieldByName(field)
			return ok
		}
	}
	return false
}

// justConfig knows the configuration's types and leaves all other packages empty,
// which is enough to resolve what is selected from a configuration, and quick.
type justConfig struct{ config *types.Package }

func (j justConfig) Import(path string) (*types.Package, error) {
	if path == "gatewayd/internal/config" {
		return j.config, nil
	}
	p := types.NewPackage(path, filepath.Base(path))
	p.MarkComplete()
	return p, nil
}

func fieldsUsed(t *testing.T) map[string]bool {
	t.Helper()
	set := token.NewFileSet()
	tolerant := types.Config{Importer: justConfig{}, Error: func(error) {}}
	configured, _ := tolerant.Check("gatewayd/internal/config", set, parseFolder(t, set, "../../internal/config"), nil) // the other packages are missing
	info := &types.Info{Selections: make(map[*ast.SelectorExpr]*types.Selection)}
	tolerant.Importer = justConfig{configured}
	files := parseFolder(t, set, ".")
	_, _ = tolerant.Check("gatewayd/cmd/gatewayd", set, files, info) // likewise
	compared := make(map[ast.Node]bool)
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			if b, ok := n.(*ast.BinaryExpr); ok && (b.Op == token.EQL || b.Op == token.NEQ) && selection(b.X) == selection(b.Y) && selection(b.X) != "" {
				compared[b.X], compared[b.Y] = true, true
			}
			if a, ok := n.(*ast.AssignStmt); ok {
				for _, left := range a.Lhs {
					compared[left] = true
				}
			}
			return true
		})
	}
	used := make(map[string]bool)
	for expr, s := range info.Selections {
		if s.Kind() != types.FieldVal || s.Obj().Pkg() != configured || compared[expr] {
			continue
		}
		if named, ok := types.Unalias(deref(s.Recv())).(*types.Named); ok {
			used[named.Obj().Name()+"."+s.Obj().Name()] = true
		}
	}
	return used
}

func deref(t types.Type) types.Type {
	if p, ok := types.Unalias(t).(*types.Pointer); ok {
		return p.Elem()
	}
	return t
}

// selection is the name of the field that an expression ends with.
func selection(e ast.Expr) string {
	if s, ok := e.(*ast.SelectorExpr); ok {
		return s.Sel.Name
	}
	return ""
}

func parseFolder(t *testing.T, set *token.FileSet, dir string) []*ast.File {
	t.Helper()
	names := must(filepath.Glob(dir + "/*.go"))(t)
	var files []*ast.File
	for _, name := range names {
		if !strings.HasSuffix(name, "_test.go") {
			files = append(files, must(parser.ParseFile(set, name, nil, parser.SkipObjectResolution))(t))
		}
	}
	return files
}
