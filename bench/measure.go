package main

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// device counts what reaches the block device below a folder: a loop device of its own where that can be had, so that nobody else's writes count.
type device struct {
	dir, stat string
	cleanup   func()
}

// newDevice mounts an ext4 image of its own. Without the right to mount it falls back to what the kernel says this process wrote, which leaves the
// file system's own journal out.
func newDevice(base string) (*device, error) {
	img, dir := filepath.Join(base, "disk.img"), filepath.Join(base, "mnt")
	check(os.MkdirAll(dir, 0o700))
	script := fmt.Sprintf("truncate -s 6G %s && mkfs.ext4 -q -F %s && mount -o loop %s %s && findmnt -no SOURCE %s", img, img, img, dir, dir)
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		return &device{dir: dir, cleanup: func() {}}, fmt.Errorf("no loop device (%s): device bytes are those of /proc/self/io", strings.TrimSpace(string(out)))
	}
	name := filepath.Base(strings.TrimSpace(string(out)))
	return &device{dir: dir, stat: "/sys/block/" + name + "/stat", cleanup: func() {
		exec.Command("umount", dir).Run()
		os.Remove(img)
	}}, nil
}

// written is in bytes; the file system is synced first so that what a store leaves in memory counts too.
func written(stat string) int64 {
	if stat == "" {
		b, err := os.ReadFile("/proc/self/io")
		check(err)
		for _, l := range strings.Split(string(b), "\n") {
			if v, ok := strings.CutPrefix(l, "write_bytes: "); ok {
				n, err := strconv.ParseInt(v, 10, 64)
				check(err)
				return n
			}
		}
		return 0
	}
	b, err := os.ReadFile(stat)
	check(err)
	n, err := strconv.ParseInt(strings.Fields(string(b))[6], 10, 64)
	check(err)
	return n * 512
}

func cpu() time.Duration {
	var u syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rss is the memory of this process now, or the most it ever was.
func rss(field string) float64 {
	b, err := os.ReadFile("/proc/self/status")
	check(err)
	for _, l := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(l, field+":"); ok {
			n, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			check(err)
			return n / 1024
		}
	}
	return 0
}

func held(dir string) float64 {
	var n int64
	filepath.Walk(dir, func(_ string, i os.FileInfo, err error) error {
		if err == nil && !i.IsDir() {
			n += i.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return float64(n) / (1 << 20)
}

// latencies counts in steps of 2 %, so that a fast store does not pay in memory for being measured.
type latencies struct{ steps []atomic.Uint32 }

const (
	latencyFloor = float64(10 * time.Microsecond)
	latencyStep  = 1.02
)

func newLatencies() *latencies { return &latencies{make([]atomic.Uint32, 800)} }

func (l *latencies) add(d time.Duration) {
	i := int(math.Log(max(float64(d)/latencyFloor, 1)) / math.Log(latencyStep))
	l.steps[min(i, len(l.steps)-1)].Add(1)
}

// percentile is in milliseconds.
func (l *latencies) percentile(p float64) float64 {
	var total, below float64
	for i := range l.steps {
		total += float64(l.steps[i].Load())
	}
	for i := range l.steps {
		if below += float64(l.steps[i].Load()); below > 0 && below >= total*p {
			return latencyFloor * math.Pow(latencyStep, float64(i)+0.5) / 1e6
		}
	}
	return 0
}
