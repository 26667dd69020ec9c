package config

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Problem is one thing that is wrong with a file.
type Problem struct {
	File   string // as given to Load
	Line   int    // from 1; 0 when it belongs to no line
	Path   string // such as identities[1].queue.max_bytes; "" for the whole file
	Reason string
	Silent bool // a file could not be looked at: its file system does not answer
}

// String is one line: file:line: path: reason.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		b.WriteString(":" + strconv.Itoa(p.Line))
	}
	if p.Path != "" {
		b.WriteString(": " + p.Path)
	}
	b.WriteString(": " + p.Reason)
	return b.String()
}

// maxProblems bounds what is collected, maxShown the text of an Error: the
// reader's screen is finite too.
const (
	maxProblems = 1000
	maxShown    = 50
)

// Error says why a file was refused. Nothing of the file is in use then.
type Error struct {
	Problems []Problem // at least one, by line
	Warnings []Problem // what a sound file would have got as Config.Warnings, by line
}

// Error has one line per problem.
func (e *Error) Error() string {
	lines := make([]string, 0, min(len(e.Problems), maxShown)+1)
	for i, p := range e.Problems {
		if i == maxShown {
			lines = append(lines, fmt.Sprintf("%s: and %d more problems", p.File, len(e.Problems)-maxShown))
			break
		}
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

func byLine(a, b Problem) int { return cmp.Compare(a.Line, b.Line) }

// report adds a problem at a path whose line is known from reading it, or from
// the nearest part of the path that was read.
func (d *decoder) report(path, format string, args ...any) {
	d.reportLine(d.line(path), path, format, args...)
}

func (d *decoder) reportLine(line int, path, format string, args ...any) {
	if len(d.problems) == maxProblems {
		return
	}
	d.problems = append(d.problems, Problem{File: d.file, Line: line, Path: path, Reason: fmt.Sprintf(format, args...)})
}

func (d *decoder) warn(path, format string, args ...any) {
	d.warnings = append(d.warnings, Problem{File: d.file, Line: d.line(path), Path: path, Reason: fmt.Sprintf(format, args...)})
}

func (d *decoder) line(path string) int {
	for {
		if n, ok := d.lines[path]; ok || path == "" {
			return n
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
}

// err sorts what was found; nil when there is nothing.
func (d *decoder) err() error {
	if len(d.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(d.problems, byLine)
	return &Error{Problems: d.problems, Warnings: d.warnings}
}

// quote shows a value of the file, cut, and not at all where it looks like
// part of a connection string: those hold secrets.
func quote(s string) string {
	if looksSecret(s) {
		return "(not shown)"
	}
	const most = 60
	if len(s) > most {
		cut := most
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		return strconv.Quote(s[:cut]) + "..."
	}
	return strconv.Quote(s)
}

func looksSecret(s string) bool {
	low := strings.ToLower(s)
	return strings.Contains(low, "sharedaccess") || strings.Contains(low, "hostname=") || strings.Contains(s, "@") || strings.Contains(low, "private key")
}

// keyText is a key as a path shows it.
func keyText(k string) string {
	if k != "" && len(k) <= 40 && !strings.ContainsFunc(k, func(r rune) bool {
		return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		return k
	}
	return quote(k)
}

// suggest finds the known word nearest to what was written, or "".
func suggest(written string, known []string) string {
	best, bestAt := "", 1+max(1, len(written)/3)
	low := strings.ToLower(strings.ReplaceAll(written, "-", "_"))
	for _, k := range known {
		if d := distance(low, strings.ToLower(k), bestAt); d < bestAt {
			best, bestAt = k, d
		}
	}
	return best
}

// distance is Levenshtein's, given up with limit once it is reached.
func distance(a, b string, limit int) int {
	if len(a) > 64 || len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			step := diagonal
			if a[i] != b[j] {
				step++
			}
			diagonal = row[j+1]
			row[j+1] = min(step, row[j]+1, row[j+1]+1)
		}
	}
	return min(row[len(b)], limit)
}

// absolute resolves a path of the file against the file's folder; "" stays.
func (d *decoder) absolute(p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(d.dir, p)
}
