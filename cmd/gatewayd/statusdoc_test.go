package main

import (
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// jsonPaths lists what a type becomes as JSON: identities[].queue.bytes, and for a
// map the path of its values with {}.
func jsonPaths(t reflect.Type, prefix string, into map[string]string) {
	switch {
	case t.Kind() == reflect.Pointer:
		jsonPaths(t.Elem(), prefix, into)
		return
	case t.Kind() == reflect.Slice:
		jsonPaths(t.Elem(), prefix+"[]", into)
		return
	case t.Kind() == reflect.Map:
		jsonPaths(t.Elem(), prefix+"{}", into)
		return
	case t == reflect.TypeFor[time.Time]():
		into[prefix] = "time"
		return
	case t.Kind() != reflect.Struct:
		into[prefix] = map[bool]string{true: "text", false: "number"}[t.Kind() == reflect.String]
		if t.Kind() == reflect.Bool {
			into[prefix] = "true or false"
		}
		return
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			jsonPaths(f.Type, prefix, into)
		case name != "-" && f.IsExported():
			jsonPaths(f.Type, strings.TrimPrefix(prefix+"."+name, "."), into)
		}
	}
}

// Each field of /status stands in docs/status.md with its type, and nothing else does.
func TestStatusIsDocumented(t *testing.T) {
	want := map[string]string{}
	jsonPaths(reflect.TypeFor[report](), "", want)
	if len(want) < 100 {
		t.Fatalf("only %d fields found", len(want))
	}
	_, text, _ := strings.Cut(string(must(os.ReadFile("../../docs/status.md"))(t)), "## /status\n")
	got := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]+) \\|[^|]*\\|$").FindAllStringSubmatch(text, -1) {
		for _, path := range expand(m[1]) {
			if _, twice := got[path]; twice {
				t.Errorf("%s stands there twice", path)
			}
			got[path] = strings.TrimSpace(m[2])
		}
	}
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got[path] != want[path] {
			t.Errorf("docs/status.md: `%s` | %s | is missing, or has another type: %q", path, want[path], got[path])
		}
	}
	for path := range got {
		if want[path] == "" {
			t.Errorf("docs/status.md has %s, which is in no status", path)
		}
	}
}

// expand knows (a|b).c for two things that have the same fields.
func expand(path string) []string {
	open, end := strings.IndexByte(path, '('), strings.IndexByte(path, ')')
	if open < 0 {
		return []string{path}
	}
	var all []string
	for _, one := range strings.Split(path[open+1:end], ",") {
		all = append(all, path[:open]+one+path[end+1:])
	}
	return all
}
