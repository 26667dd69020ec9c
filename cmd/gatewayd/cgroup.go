package main

import (
	"bufio"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
)

// memoryShare of the control group's limit is for the Go heap and its overhead;
// the rest is for the program's own pages and what the kernel counts besides.
const memoryShare = 0.85

// boundMemory makes the collector work harder before the control group's limit is
// reached, where the kernel would kill the process. GOMEMLIMIT of the operator goes
// first. It returns the bound in bytes, 0 when there is none.
func boundMemory(root string) int64 {
	if os.Getenv("GOMEMLIMIT") != "" {
		return 0
	}
	limit := memoryLimit(root)
	if limit == 0 {
		return 0
	}
	bound := int64(float64(limit) * memoryShare)
	debug.SetMemoryLimit(bound)
	return bound
}

// memoryLimit is the smallest limit of the control groups that this process is in, 0
// when there is none. root is "/" but in tests.
//
// cgroups(7): a line of /proc/self/cgroup is number:controllers:path; the unified
// hierarchy has number 0 and no controllers, the older one may be mounted beside it.
func memoryLimit(root string) int64 {
	f, err := os.Open(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return 0
	}
	defer f.Close()
	limit := int64(math.MaxInt64)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		parts := strings.SplitN(lines.Text(), ":", 3)
		if len(parts) != 3 {
			continue
		}
		switch {
		case parts[0] == "0" && parts[1] == "":
			limit = min(limit, smallest(filepath.Join(root, "sys/fs/cgroup"), parts[2], "memory.max"))
		case strings.Contains(","+parts[1]+",", ",memory,"):
			limit = min(limit, smallest(filepath.Join(root, "sys/fs/cgroup/memory"), parts[2], "memory.limit_in_bytes"))
		}
	}
	// The older hierarchy says "none" as the largest number of pages.
	if limit >= 1<<60 {
		return 0
	}
	return limit
}

// smallest is the least number in the files of that name from group up to the
// mount. In a container the path may be that of the host, and the group's own files
// are at the mount.
func smallest(mount, group, file string) int64 {
	limit := int64(math.MaxInt64)
	for {
		// "max" is no number, and no limit.
		if text, err := os.ReadFile(filepath.Join(mount, group, file)); err == nil {
			if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 0 {
				limit = min(limit, n)
			}
		}
		if group == "/" || group == "." || group == "" {
			return limit
		}
		group = filepath.Dir(group)
	}
}
