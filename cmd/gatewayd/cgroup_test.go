package main

import (
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
)

func TestMemoryIsBoundedByTheControlGroup(t *testing.T) {
	for _, tt := range []struct {
		name   string
		cgroup string
		files  map[string]string // below /sys/fs/cgroup
		want   int64
	}{
		{"unit", "0::/system.slice/gatewayd.service\n", map[string]string{"system.slice/gatewayd.service/memory.max": "268435456\n", "system.slice/memory.max": "max\n"}, 256 << 20},
		{"a slice above is smaller", "0::/a/b\n", map[string]string{"a/memory.max": "1048576\n", "a/b/memory.max": "2097152\n"}, 1 << 20},
		{"container with a namespace", "0::/\n", map[string]string{"memory.max": "134217728\n"}, 128 << 20},
		{"container that sees the host's path", "0::/kubepods/pod1\n", map[string]string{"memory.max": "134217728\n"}, 128 << 20},
		{"older hierarchy", "9:cpu,cpuacct:/\n4:memory:/user\n0::/user\n", map[string]string{"memory/user/memory.limit_in_bytes": "67108864\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"}, 64 << 20},
		{"older hierarchy without a limit", "4:memory:/\n", map[string]string{"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0},
		{"no limit", "0::/a\n", map[string]string{"a/memory.max": "max\n"}, 0},
		{"nonsense", "0\n::\nmemory\n0::/a\n", map[string]string{"a/memory.max": "-5 apples\n"}, 0},
		{"no control groups", "", nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			check(t, os.MkdirAll(filepath.Join(root, "proc/self"), 0o755))
			check(t, os.WriteFile(filepath.Join(root, "proc/self/cgroup"), []byte(tt.cgroup), 0o600))
			for name, text := range tt.files {
				path := filepath.Join(root, "sys/fs/cgroup", name)
				check(t, os.MkdirAll(filepath.Dir(path), 0o755))
				check(t, os.WriteFile(path, []byte(text), 0o600))
			}
			if got := memoryLimit(root); got != tt.want {
				t.Errorf("%d, want %d", got, tt.want)
			}
			before := debug.SetMemoryLimit(-1)
			defer debug.SetMemoryLimit(before)
			t.Setenv("GOMEMLIMIT", "1GiB")
			if got := boundMemory(root); got != 0 {
				t.Errorf("the operator's GOMEMLIMIT is replaced by %d", got)
			}
			os.Unsetenv("GOMEMLIMIT")
			got, want := boundMemory(root), int64(float64(tt.want)*memoryShare)
			if want == 0 && debug.SetMemoryLimit(-1) != before || want > 0 && debug.SetMemoryLimit(-1) != want || got != want {
				t.Errorf("bound to %d, the runtime to %d, want %d", got, debug.SetMemoryLimit(math.MinInt64), want)
			}
		})
	}
}
