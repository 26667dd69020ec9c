package hub

import (
	"bytes"
	"compress/gzip"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"gatewayd/internal/queue"
)

const (
	// maxPack is the most that a pack's body and properties may come to; the rest of
	// the hub's 256 KiB is for the topic, which IoT Edge counts too.
	maxPack = maxMessage - 16<<10
	// packLabels is more than the labels of any pack come to, without the output.
	packLabels = 256
	// readAheadPacks and readAheadBytes bound what is packed and waits for room in the
	// window.
	readAheadPacks = 32
	readAheadBytes = 64 << 10
)

// pack is several readings that travel as one message. It is made once, of readings
// that are durable, and from then on only loses members: to their age, or to the
// operator. Its id stands for the members that it was made of.
type pack struct {
	id    string // $.mid; "" until the first member is seen again
	class uint8
	made  uint64   // of a record that was read: its first member, whose id begins the pack's; 0 = not known
	seqs  []uint64 // the members that it was made of, ascending

	// As far as its members were read on this connection:
	got        int
	first      queue.Message // without body: the labels of all
	body       []byte
	properties []queue.Property // those that all members share
	since      time.Time        // when the first member was read

	// Guarded by packs.mu:
	record   uint64 // where the members are written down; 0 = nowhere
	recorded bool   // it may be sent
	count    int    // readings in what was sent last
	done     bool   // the hub has it
	split    int    // packs that it was taken apart into whose records are not on disk yet
}

// unit is the number under which a pack is in flight.
func (p *pack) unit() uint64 { return p.seqs[0] }

// source stands for the sensors of a pack where their order matters: the packs of
// one route follow one another.
func (p *pack) source() string { return "pack of " + p.first.Route }

func (p *pack) last() uint64 { return p.seqs[len(p.seqs)-1] }

// labels is what the hub counts of a pack beside its body and properties.
func (p *pack) labels(m *queue.Message) int {
	n := len(p.id) + len(".9") + len(contentType(m.Pack)) + len("utf-8") + len(m.Output)
	if stamped(m) || stamped(&p.first) {
		n += timeLength
	}
	for i := 10; i <= len(p.seqs)+1; i *= 10 {
		n++
	}
	return n
}

func contentType(p queue.Pack) string {
	if p.Lines {
		return "application/x-ndjson"
	}
	return "application/json"
}

// fits says whether one more element may join: the message stays within max_bytes as
// the hub counts it.
func (p *pack) fits(m *queue.Message, element []byte) bool {
	both := p.properties
	if !slices.Equal(both, m.Properties) {
		both = shared(both, m.Properties)
	}
	size := len(p.body) + len(element) + len(",]") + p.labels(m) + propertyBytes(both)
	return size <= min(m.Pack.MaxBytes, maxPack)
}

func propertyBytes(all []queue.Property) (n int) {
	for _, p := range all {
		n += len(p.Key) + len(p.Value)
	}
	return n
}

// alike says that m may join: route and priority are the same by the way in which
// packs are found.
func (p *pack) alike(m *queue.Message) bool {
	f := &p.first
	return f.Pack == m.Pack && f.ContentType == m.ContentType && f.ContentEncoding == m.ContentEncoding && f.Output == m.Output
}

// add puts one more reading in.
func (p *pack) add(m *queue.Message, element []byte) {
	if p.got == 0 {
		p.first = *m
		p.first.Payload = nil
		p.properties = m.Properties
		p.since = time.Now()
		p.body = p.body[:0]
		if !m.Pack.Lines {
			p.body = append(p.body, '[')
		}
	} else {
		if !slices.Equal(p.properties, m.Properties) {
			p.properties = shared(p.properties, m.Properties)
		}
		if !m.Pack.Lines {
			p.body = append(p.body, ',')
		}
	}
	p.body = append(p.body, element...)
	if m.Pack.Lines {
		p.body = append(p.body, '\n')
	}
	p.got++
}

// shared are the properties of a that b has too.
func shared(a, b []queue.Property) []queue.Property {
	var both []queue.Property
	for _, p := range a {
		if slices.Contains(b, p) {
			both = append(both, p)
		}
	}
	return both
}

// due says when the pack goes with what it has: max_delay after its first member was
// accepted. While more is there to be read it fills first, for max_delay at most.
func (p *pack) due(idle bool) time.Time {
	due := p.since.Add(p.first.Pack.MaxDelay)
	if idle && p.first.AcceptedTrusted {
		if age := p.since.Sub(p.first.Accepted); age > 0 {
			due = due.Add(-min(age, p.first.Pack.MaxDelay))
		}
	}
	return due
}

// packID is $.mid of a pack: its first member's id, and how many it was made of.
func packID(first string, n int) string { return first + "." + strconv.Itoa(n) }

// message is the pack as the hub gets it; its time is that of its first member.
// writers are of gzip; each takes 800 KB, and none is kept where none is used.
func (p *pack) message(writers *sync.Pool) (queue.Message, error) {
	m := p.first
	m.Seq, m.ID, m.Properties, m.Payload = p.unit(), p.id, p.properties, p.body
	m.ContentType, m.ContentEncoding = contentType(m.Pack), "utf-8"
	if !m.Pack.Lines {
		m.Payload = append(m.Payload[:len(m.Payload):len(m.Payload)], ']')
	}
	if !m.Pack.Gzip {
		return m, nil
	}
	var out bytes.Buffer
	w, ok := writers.Get().(*gzip.Writer)
	if !ok {
		w = gzip.NewWriter(io.Discard)
	}
	defer writers.Put(w)
	w.Reset(&out)
	if _, err := w.Write(m.Payload); err != nil {
		return m, err
	}
	if err := w.Close(); err != nil {
		return m, err
	}
	if out.Len() < len(m.Payload) {
		m.Payload, m.ContentEncoding = out.Bytes(), "gzip"
	}
	return m, nil
}

// forget gives back what was read of the pack; its members are read again.
func (p *pack) forget() {
	p.got, p.body, p.properties, p.first = 0, nil, nil, queue.Message{}
}
