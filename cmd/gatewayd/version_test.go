package main

import (
	"encoding/json"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

func TestVersionTakesWhatTheToolchainKnows(t *testing.T) {
	info := &debug.BuildInfo{
		Main: debug.Module{Version: "v1.2.3"},
		Settings: []debug.BuildSetting{
			{Key: "vcs.revision", Value: "abc"},
			{Key: "vcs.time", Value: "2026-01-02T03:04:05Z"},
		},
	}
	var b build
	b.fill(info)
	if b.Version != "v1.2.3" || b.Commit != "abc" || !b.Built.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("got %+v", b)
	}
	stamped := build{Version: "v9", Commit: "def", Built: time.Unix(1, 0)}
	want := stamped
	if stamped.fill(info); stamped != want {
		t.Errorf("the linker's words were replaced: %+v", stamped)
	}
	info.Main.Version = "(devel)"
	b = build{}
	if b.fill(info); b.Version != "" {
		t.Errorf("version %q", b.Version)
	}
}

func TestVersionCommand(t *testing.T) {
	out, _, err := execute(t, newVersionCommand(), "")
	if err != nil || !strings.HasPrefix(out, "gatewayd "+versionString()+"\n") || !strings.Contains(out, runtime.Version()) {
		t.Errorf("%q, %v", out, err)
	}
	out, _, err = execute(t, newVersionCommand(), "", "--json")
	var b build
	if err != nil || json.Unmarshal([]byte(out), &b) != nil || b.Version != versionString() || b.Arch != runtime.GOARCH {
		t.Errorf("%q, %v", out, err)
	}
}
