package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// declared collects what the module declares: Test names, and functions as
// package.Function or package.Type.Method.
func declared(t *testing.T) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	set := token.NewFileSet()
	check(t, filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git") {
			if err == nil {
				err = fs.SkipDir
			}
			return err
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		f, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			name := fn.Name.Name
			if strings.HasPrefix(name, "Test") {
				names[name] = true
			}
			if fn.Recv != nil {
				name = receiver(fn.Recv.List[0].Type) + "." + name
			}
			names[f.Name.Name+"."+name] = true
			names[name] = true
		}
		return nil
	}))
	return names
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

var (
	testName = regexp.MustCompile("`(Test[A-Za-z0-9]+)`")
	pathStep = regexp.MustCompile("`((?:[a-z]+\\.)?[A-Za-z]+\\.[A-Za-z.]+)`")
)

// The map for newcomers must not name what is not there.
func TestReadmeNamesWhatExists(t *testing.T) {
	text := string(must(os.ReadFile("../../README.md"))(t))
	names := declared(t)
	tests := testName.FindAllStringSubmatch(text, -1)
	if len(tests) < 5 {
		t.Errorf("only %d tests are named", len(tests))
	}
	for _, m := range tests {
		if !names[m[1]] {
			t.Errorf("README names %s, which is not there", m[1])
		}
	}
	_, ways, ok := strings.Cut(text, "## The way of a message")
	ways, _, ok2 := strings.Cut(ways, "## Promises")
	steps := pathStep.FindAllStringSubmatch(ways, -1)
	if !ok || !ok2 || len(steps) < 12 {
		t.Fatalf("the two ways have %d steps", len(steps))
	}
	for _, m := range steps {
		// downstream.HTTP is a type; what is looked for are functions.
		if !names[m[1]] && m[1] != "downstream.HTTP" {
			t.Errorf("README names %s, which is not there", m[1])
		}
	}
}
