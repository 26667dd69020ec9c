package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// watch shows the report until ctx ends, which is no error: then the exit code is
// that of the last one. A gateway that does not answer is shown as such, because it
// may be restarting.
func (v *statusView) watch(ctx context.Context) error {
	if v.every < 200*time.Millisecond {
		return &exitError{exitUsage, errors.New("--interval takes at least 200ms")}
	}
	tick := time.NewTicker(v.every)
	defer tick.Stop()
	out, place := v.out, isTerminal(v.out) && !v.asJSON
	var last error
	for n := 0; ; n++ {
		var b bytes.Buffer
		v.out = &b
		now := v.show(ctx)
		if ctx.Err() != nil {
			return v.end(out, place, last)
		}
		last = now
		if text := errorText(last); text != "" && !v.asJSON {
			fmt.Fprintln(&b, "gatewayd:", text)
		}
		if err := writeBlock(out, b.String(), place, n == 0, v.asJSON); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return v.end(out, place, last)
		case <-tick.C:
		}
	}
}

// end leaves the prompt on a line of its own. What was wrong last has been shown.
func (v *statusView) end(out io.Writer, place bool, last error) error {
	if place {
		fmt.Fprintln(out)
	}
	if last != nil {
		return &exitError{code: exitRunning}
	}
	return nil
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// writeBlock writes one report: over the last one on a terminal, below it elsewhere.
func writeBlock(out io.Writer, text string, place, first, plain bool) error {
	switch {
	case place:
		text = inPlace(text, out)
		if first {
			text = "\x1b[2J" + text
		}
	case !first && !plain:
		text = "\n" + text
	}
	_, err := io.WriteString(out, text)
	return err
}

// inPlace draws from the upper left corner, and cuts what the terminal cannot show:
// a line that wraps, or one too many, would move everything.
func inPlace(text string, out io.Writer) string {
	width, height := 80, 24
	if f, ok := out.(*os.File); ok {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 1 {
			width, height = w, h
		}
	}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if over := len(lines) - (height - 1); over > 0 {
		lines = append(lines[:height-2], fmt.Sprintf("... and %d more lines", over+1))
	}
	var b strings.Builder
	b.WriteString("\x1b[H")
	for _, l := range lines {
		if r := []rune(l); len(r) > width {
			l = string(r[:width-1]) + "…"
		}
		b.WriteString(l + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	return b.String()
}
