package queue

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// FuzzSegment gives the reader a segment whose bytes somebody else wrote.
func FuzzSegment(f *testing.F) {
	w := newWorld(f, rand.New(rand.NewPCG(1, 1)).IntN)
	w.mustOpen()
	w.append("press-7", 0, 3, 50)
	w.append("press-8", 3, 1, 20)
	w.ack("press-7", 1, false)
	w.flush()
	body := w.fs.files[w.j.w.seg.slot.name].data[:w.j.w.off]
	w.close()
	f.Add(body, uint16(0), byte(0))
	f.Add(body[:len(body)-7], uint16(5000), byte(1))
	f.Fuzz(func(t *testing.T, data []byte, off uint16, flip byte) {
		if len(data) > 1<<17 {
			return
		}
		if int(off) < len(data) {
			data = slices.Clone(data) // it is the fuzzer's
			data[off] ^= flip
		}
		fs := newMemFS()
		fs.files["/q/00000000.jnl"] = &memFile{fs: fs, data: data, durable: data}
		j, err := open(Options{Dir: "/q", SegmentBytes: minSegment}, fs)
		if err != nil {
			return
		}
		defer j.Close()
		for _, n := range j.Identities() {
			q, _ := j.Queue(n, Limits{})
			r := q.Reader()
			for {
				if _, ok, err := r.Next(); !ok || err != nil {
					break
				}
			}
			q.Aside()
		}
	})
}

// FuzzItems gives the parsers bodies that pass their checksum, as a hostile writer of the folder could.
func FuzzItems(f *testing.F) {
	f.Add([]byte{0, 1, 1, 0, 32, 60, 'x'})
	f.Add([]byte{0x1a, 1, 2, 0, 32, 60, 1, 1, 0, 1, 'i', 1, 'r', 5, 'x'})
	f.Add([]byte{1, 5, 4, 3, 5, 0, 0, 0, 0, 0, 1, 0, 3, 2, 1, 1})
	f.Fuzz(func(t *testing.T, body []byte) {
		if h, ok := parseMessage(body); ok && (h.class >= classes || h.priority > MaxPriority) {
			t.Errorf("class %d, priority %d", h.class, h.priority)
		}
		if s, ok := parseState(body); ok && s.next == 0 {
			t.Error("a queue without a next sequence")
		}
		parseList(body, 1, len(body)/3)
		frame := append(beginItem(make([]byte, frameHeaderLen), itemAgain), body...)
		endItem(frame, frameHeaderLen, 1)
		for _, off := range []int{frameHeaderLen, frameHeaderLen + 1, len(frame) - 1, len(frame) + 1} {
			frameView{b: frame, salt: 1}.item(off, itemMeta)
			frameView{b: frame, salt: 1}.base(off)
		}
		if dir, total, ok := footerSize(body, 100); ok && dir <= len(body) {
			parseFooter(body[:dir], 1, total, func(footerRun) {})
		}
		v := frameView{b: append(make([]byte, frameHeaderLen), body...), salt: 1}
		var m Message
		v.meta(frameHeaderLen, &m)
		v.base(frameHeaderLen)
		v.head(frameHeaderLen)
	})
}
