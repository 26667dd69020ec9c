package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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

func percentile(d []time.Duration, p float64) float64 {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return float64(d[int(float64(len(d)-1)*p)].Microseconds()) / 1000
}
