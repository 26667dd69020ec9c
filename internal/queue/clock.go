package queue

import (
	"encoding/hex"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

type wallClock struct{}

func (wallClock) Now() (time.Time, bool) { return time.Now(), true }

// bootClock counts since the machine started, suspend included, and names that start. Together they let a time that was taken before the wall clock
// was set be corrected afterwards.
type bootClock struct {
	id    [16]byte
	begin time.Time // when the two below were read
	mono  int64     // milliseconds since boot
}

func readBootClock() bootClock {
	c := bootClock{begin: time.Now()}
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		hex.Decode(c.id[:], []byte(strings.ReplaceAll(strings.TrimSpace(string(b)), "-", "")))
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err == nil {
		c.mono = ts.Nano() / int64(time.Millisecond)
	}
	return c
}

func (c *bootClock) now() int64 { return c.mono + time.Since(c.begin).Milliseconds() }

// maxBoots bounds how many boots' corrections are remembered.
const maxBoots = 32

// learnBoot notes the offset between wall and boot clock once the wall clock is trusted.
func (j *Journal) learnBoot() {
	t, trusted := j.clock.Now()
	if !trusted {
		return
	}
	off := t.UnixMilli() - j.boot.now()
	j.mu.Lock()
	defer j.mu.Unlock()
	old, known := j.boots[j.boot.id]
	if known && off-old < 1000 && old-off < 1000 {
		return
	}
	if !known && len(j.boots) >= maxBoots {
		for id := range j.boots {
			delete(j.boots, id)
			break
		}
	}
	j.boots[j.boot.id] = off
	j.bootsDirty = true
}

// accepted says when a message was accepted and whether that can be believed. A stamp of an unset clock is corrected when the same boot learned the
// time later.
func (j *Journal) accepted(b *base, dt int64) (time.Time, bool) {
	if !b.trusted {
		j.mu.Lock()
		off, ok := j.boots[b.boot]
		j.mu.Unlock()
		if ok && b.boot != [16]byte{} {
			return time.UnixMilli(off + b.mono + dt).UTC(), true
		}
	}
	return time.UnixMilli(b.wall + dt).UTC(), b.trusted
}

// age of a stamp; ok is false when no clock can tell. Within one boot the boot clock tells even while the wall clock cannot be believed.
func (j *Journal) age(b *base, dt int64) (time.Duration, bool) {
	now, trusted := j.clock.Now()
	if t, ok := j.accepted(b, dt); ok && trusted {
		return now.Sub(t), true
	}
	if b.boot == j.boot.id && b.boot != [16]byte{} {
		return time.Duration(j.boot.now()-b.mono-dt) * time.Millisecond, true
	}
	return 0, false
}
