package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"unicode"

	"gopkg.in/yaml.v3"
)

// maxFile bounds the file before anything is parsed.
const maxFile = 1 << 20

// Load reads and checks a file. The error is always an *Error.
func Load(name string) (*Config, error) { return new(Looker).Load(name) }

// Load is as the function of that name, and looks into no folder that an earlier look hangs in.
func (l *Looker) Load(name string) (*Config, error) {
	data, err := read(name)
	if err != nil {
		return nil, &Error{Problems: []Problem{{File: name, Reason: err.Error()}}}
	}
	return parse(name, data, l)
}

// Peek is Load for who only wants the words of a file, such as to ask the gateway that runs with it: whether the files
// are there that it names is not looked at.
func Peek(name string) (*Config, error) {
	data, err := read(name)
	if err != nil {
		return nil, &Error{Problems: []Problem{{File: name, Reason: err.Error()}}}
	}
	return parse(name, data, nil)
}

func read(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			return nil, pe.Err
		}
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.IsDir() {
		return nil, errors.New("is a folder where a file is needed")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("is larger than %s", sizeString(maxFile))
	}
	return data, nil
}

// Parse checks the content of a file that is called name; relative paths are
// resolved against that name's folder. The error is always an *Error.
func Parse(name string, data []byte) (*Config, error) { return parse(name, data, new(Looker)) }

// parse looks at no files without a Looker.
func parse(name string, data []byte, l *Looker) (*Config, error) {
	abs, err := filepath.Abs(name)
	if err != nil {
		return nil, &Error{Problems: []Problem{{File: name, Reason: err.Error()}}}
	}
	d := &decoder{file: name, lines: map[string]int{}}
	return d.whole(abs, d.document(data), l)
}

// Line is where a key path stands in a file, for problems that only show once the
// file has loaded; 0 when that cannot be told.
func Line(name, path string) int {
	data, err := read(name)
	if err != nil {
		return 0
	}
	d := &decoder{file: name, lines: map[string]int{}}
	if root := d.document(data); root != nil {
		c := Defaults()
		d.dir = filepath.Dir(name)
		d.config(root, &c)
	}
	return d.line(path)
}

// whole reads the tree of a file, nil when there is none, into a configuration.
func (d *decoder) whole(abs string, root *yaml.Node, l *Looker) (*Config, error) {
	d.dir = filepath.Dir(abs)
	c := Defaults()
	c.File = abs
	if root != nil {
		d.config(root, &c)
	}
	if l != nil {
		l.look(d)
	}
	slices.SortStableFunc(d.warnings, byLine)
	if err := d.err(); err != nil {
		return nil, err
	}
	c.Warnings = d.warnings
	return &c, nil
}

// document parses the one YAML document, or reports why it cannot.
func (d *decoder) document(data []byte) *yaml.Node {
	if len(data) > maxFile {
		d.reportLine(0, "", "is larger than %s", sizeString(maxFile))
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		d.reportLine(0, "", "is empty")
		return nil
	case err != nil:
		d.syntax(err, data)
		return nil
	}
	switch err := dec.Decode(&more); {
	case err == nil:
		d.reportLine(more.Line, "", "holds a second document; one is all there can be")
		return nil
	case !errors.Is(err, io.EOF):
		d.syntax(err, data)
		return nil
	}
	return doc.Content[0]
}

// syntax reports what the YAML parser says, at the line where it says so.
func (d *decoder) syntax(err error, data []byte) {
	reason := syntaxReason(err)
	lines := bytes.SplitAfter(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
	// The parser names the line where the enclosing block starts, or the one
	// before the fault. The fault is on the last line of the shortest beginning
	// of the file that fails in the same way.
	line := 1 + sort.Search(len(lines)-1, func(n int) bool {
		err := wellFormed(bytes.Join(lines[:n+1], nil))
		return err != nil && syntaxReason(err) == reason
	})
	if looksSecret(reason) {
		reason = "syntax error"
	}
	d.reportLine(line, "", "is not YAML: %s", reason)
}

func wellFormed(data []byte) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var doc yaml.Node
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// syntaxReason is the library's "yaml: line 7: reason" without the number.
func syntaxReason(err error) string {
	reason := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(reason, "line "); ok {
		if number, after, ok := strings.Cut(rest, ": "); ok && strings.Trim(number, "0123456789") == "" {
			return after
		}
	}
	return reason
}

// checkName tells what is wrong with an identity's name, or "". Names stand in
// topics, routes, URLs and metrics.
func checkName(s string) string {
	const most = 2*maxID + 1
	switch {
	case s == "":
		return "is empty"
	case len(s) > most:
		return fmt.Sprintf("has %d bytes; at most %d are possible", len(s), most)
	case s == "." || s == "..":
		return fmt.Sprintf("%s cannot be a name", quote(s))
	case strings.ContainsAny(s, "/+#{}"):
		return fmt.Sprintf("%s holds one of / + # { }, which topics and routes need for themselves", quote(s))
	case strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsControl(r) || unicode.IsSpace(r) || r == unicode.ReplacementChar
	}):
		return fmt.Sprintf("%s holds a space or a control character", quote(s))
	}
	return ""
}
