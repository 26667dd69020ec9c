package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

type row struct {
	name, about string
	units       []string
	run         func(*cellEnv) figures
}

var rows = []row{
	{"waiting", "64 producers that each wait for the sync, one queue", []string{"appends/s", "p50 ms", "p99 ms", "cpu µs", "device B/B", "rss MB"}, func(c *cellEnv) figures { return c.produce(1, 64, 1, false, 0) }},
	{"pipelined", "one producer with 1,000 in flight, one queue", []string{"appends/s", "p99 ms", "cpu µs", "device B/B", "rss MB"}, func(c *cellEnv) figures { return c.produce(1, 1, 1000, false, 0) }},
	{"recycled", "64 producers that each wait and a consumer, after 60 MB have gone through: files are used again", []string{"appends/s", "p50 ms", "p99 ms", "device B/B", "rss MB"}, (*cellEnv).recycled},
	{"slow", "one producer that waits, a message every 10 ms", []string{"appends/s", "p99 ms", "device KiB/append", "rss MB"}, (*cellEnv).slow},
	{"fill", "500,000 messages into 2,000 queues, 1,000 in flight", []string{"appends/s", "cpu µs", "device B/B", "rss MB"}, (*cellEnv).fill},
	{"drain", "the same drained in turn, one message of each queue at a time", []string{"messages/s", "cpu µs", "rss MB"}, func(c *cellEnv) figures { return c.drain(false) }},
	{"drainqueue", "the same drained queue by queue", []string{"messages/s", "cpu µs", "rss MB"}, func(c *cellEnv) figures { return c.drain(true) }},
	{"steady", "64 producers that wait, one queue, a consumer acknowledging", []string{"appends/s", "p99 ms", "device B/B", "disk MB", "rss MB"}, func(c *cellEnv) figures { return c.produce(1, 64, 1, true, 0) }},
	{"steady2000", "the same over 2,000 queues", []string{"appends/s", "p99 ms", "device B/B", "disk MB", "rss MB"}, func(c *cellEnv) figures { return c.produce(2000, 64, 1, true, 0) }},
	{"stalled", "the same, 5 of the 2,000 are never drained", []string{"appends/s", "p99 ms", "device B/B", "disk MB", "rss MB"}, func(c *cellEnv) figures { return c.produce(2000, 64, 1, true, 5) }},
	{"open1", "open 1,000,000 messages of one queue and read the first", []string{"open s", "rss MB"}, func(c *cellEnv) figures { return c.open(1) }},
	{"open2000", "open 1,000,000 messages of 2,000 queues and read the first of each", []string{"open s", "rss MB"}, func(c *cellEnv) figures { return c.open(2000) }},
}

type cellEnv struct {
	open_    func(string, int) engine
	payloads [][]byte
	dir      string
	stat     string
	second   bool
	scale    int
}

func runCell(cell, dir, stat, payload string, short bool) {
	cell, second := strings.CutSuffix(cell, "+")
	name, eng, _ := strings.Cut(cell, "/")
	debug.SetGCPercent(50) // as gatewayd runs, for every store alike
	c := &cellEnv{open_: engines[eng], payloads: payloads(payload), dir: dir, stat: stat, second: second, scale: 10}
	if short {
		c.scale = 1
	}
	for _, r := range rows {
		if r.name == name {
			check(json.NewEncoder(os.Stdout).Encode(r.run(c)))
		}
	}
}

func (c *cellEnv) flushed() int64 {
	exec.Command("sync", "-f", c.dir).Run()
	return written(c.stat)
}

// recycled measures what a gateway sees that has been running for a while.
func (c *cellEnv) recycled() figures {
	e := c.open_(c.dir, 1)
	for range 20 {
		c.fillInto(e, 1, 20_000)
		for {
			seq, _, ok := e.next(0)
			if !ok {
				break
			}
			e.ack(0, seq)
		}
		time.Sleep(50 * time.Millisecond)
	}
	time.Sleep(2 * time.Second)
	return c.produceOn(e, 1, 64, 1, true, 0)
}

// produce runs producers with so many messages in flight each over so many queues, with or without a consumer.
func (c *cellEnv) produce(queues, producers, window int, consume bool, stalled int) figures {
	return c.produceOn(c.open_(c.dir, queues), queues, producers, window, consume, stalled)
}

func (c *cellEnv) produceOn(e engine, queues, producers, window int, consume bool, stalled int) figures {
	ready := make(chan int, queues) // a queue stands in it once at most
	armed := make([]atomic.Bool, queues)
	var consumed atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	if consume {
		wg.Go(func() { consumer(e, ready, armed, &consumed, stop) })
	}
	begin, cpu0, dev0 := time.Now(), cpu(), c.flushed()
	begin = time.Now()
	length := time.Duration(c.scale) * 500 * time.Millisecond
	var n atomic.Int64
	lat := newLatencies()
	var pg sync.WaitGroup
	for p := range producers {
		pg.Go(func() {
			slots := make(chan struct{}, window)
			for i := 0; time.Since(begin) < length; i++ {
				q := (p + i*producers) % queues
				slots <- struct{}{}
				t := time.Now()
				e.append(q, c.payloads[(p+i*producers)%payloadKinds], func() {
					lat.add(time.Since(t))
					n.Add(1)
					if consume && q >= stalled && !armed[q].Swap(true) {
						ready <- q
					}
					<-slots
				})
				if window == 1 { // wait
					slots <- struct{}{}
					<-slots
				}
			}
			for range window {
				slots <- struct{}{}
			}
		})
	}
	pg.Wait()
	d := time.Since(begin)
	used := cpu() - cpu0
	mem := rss("VmRSS")
	close(stop)
	wg.Wait()
	disk := held(c.dir)
	e.close()
	dev := c.flushed() - dev0
	total := float64(n.Load())
	return figures{"appends/s": total / d.Seconds(), "p50 ms": lat.percentile(0.5), "p99 ms": lat.percentile(0.99), "cpu µs": float64(used.Microseconds()) / total, "device B/B": float64(dev) / (total * payloadBytes), "rss MB": mem, "disk MB": disk}
}

// consumer reads what is ready and acknowledges it at once.
func consumer(e engine, ready chan int, armed []atomic.Bool, consumed *atomic.Int64, stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case q := <-ready:
			armed[q].Store(false)
			for {
				seq, _, ok := e.next(q)
				if !ok {
					break
				}
				e.ack(q, seq)
				consumed.Add(1)
			}
		}
	}
}

func (c *cellEnv) slow() figures {
	e := c.open_(c.dir, 1)
	n := 30 * c.scale
	dev0 := c.flushed()
	begin := time.Now()
	lat := newLatencies()
	for i := range n {
		done := make(chan struct{})
		t := time.Now()
		e.append(0, c.payloads[i%payloadKinds], func() { close(done) })
		<-done
		lat.add(time.Since(t))
		time.Sleep(10 * time.Millisecond)
	}
	d := time.Since(begin)
	dev := written(c.stat) - dev0
	mem := rss("VmRSS")
	e.close()
	return figures{"appends/s": float64(n) / d.Seconds(), "p99 ms": lat.percentile(0.99), "device KiB/append": float64(dev) / float64(n) / 1024, "rss MB": mem}
}

func (c *cellEnv) fillInto(e engine, queues, n int) {
	slots := make(chan struct{}, 1000)
	done := func() { <-slots }
	for i := range n {
		slots <- struct{}{}
		e.append(i%queues, c.payloads[i%payloadKinds], done)
	}
	for range cap(slots) {
		slots <- struct{}{}
	}
}

func (c *cellEnv) fill() figures {
	e := c.open_(c.dir, 2000)
	n := 50_000 * c.scale
	dev0 := c.flushed()
	begin, cpu0 := time.Now(), cpu()
	c.fillInto(e, 2000, n)
	d, used := time.Since(begin), cpu()-cpu0
	mem := rss("VmRSS")
	e.close()
	dev := c.flushed() - dev0
	return figures{"appends/s": float64(n) / d.Seconds(), "cpu µs": float64(used.Microseconds()) / float64(n), "device B/B": float64(dev) / float64(n*payloadBytes), "rss MB": mem}
}

func (c *cellEnv) drain(byQueue bool) figures {
	e := c.open_(c.dir, 2000)
	n := 50_000 * c.scale
	c.fillInto(e, 2000, n)
	begin, cpu0 := time.Now(), cpu()
	got := 0
	for more := true; more; {
		more = false
		for q := range 2000 {
			for {
				seq, _, ok := e.next(q)
				if !ok {
					break
				}
				got++
				more = true
				e.ack(q, seq)
				if !byQueue {
					break
				}
			}
		}
	}
	d, used := time.Since(begin), cpu()-cpu0
	if got != n {
		panic("messages are missing")
	}
	mem := rss("VmRSS")
	e.close()
	return figures{"messages/s": float64(n) / d.Seconds(), "cpu µs": float64(used.Microseconds()) / float64(n), "rss MB": mem}
}

func (c *cellEnv) open(queues int) figures {
	if !c.second {
		e := c.open_(c.dir, queues)
		c.fillInto(e, queues, 100_000*c.scale)
		e.close()
		return figures{}
	}
	begin := time.Now()
	e := c.open_(c.dir, queues)
	for q := range queues {
		if _, _, ok := e.next(q); !ok {
			panic("messages are missing")
		}
	}
	d := time.Since(begin)
	runtime.GC()
	mem := rss("VmHWM")
	e.close()
	return figures{"open s": d.Seconds(), "rss MB": mem}
}
