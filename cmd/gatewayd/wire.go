package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/hub"
)

const (
	// wireEvery is how often bytes are booked to a month.
	wireEvery = time.Minute
	// wireSave spares the flash: after a power cut at most so much is forgotten.
	wireSave = time.Hour
	// maxWireFile bounds what is read: 1,000 identities need 200 KB.
	maxWireFile = 16 << 20
	// wireGone is how many identities that are not configured any more keep a record of their own, for when they come
	// back. The bytes of others, and nothing else of them, are in the record with the name wireOthers, which no identity
	// can have.
	wireGone   = 200
	wireOthers = ""
)

// traffic is bytes in both directions, as [hub.Wire] counts them.
type traffic struct {
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
}

func (t traffic) plus(o traffic) traffic { return traffic{t.Sent + o.Sent, t.Received + o.Received} }

// wireRecord is what is kept of one identity, and what /status shows.
type wireRecord struct {
	Month     string  `json:"month"` // of UTC, 2006-01; "" before the clock was trusted for the first time
	ThisMonth traffic `json:"this_month"`
	LastMonth traffic `json:"last_month"`
	// Undated was counted while the clock was not trusted; it goes to the month in which
	// it is.
	Undated traffic `json:"undated"`
}

// add takes the bytes of o in, of the same month.
func (r *wireRecord) add(o wireRecord) {
	r.ThisMonth, r.LastMonth, r.Undated = r.ThisMonth.plus(o.ThisMonth), r.LastMonth.plus(o.LastMonth), r.Undated.plus(o.Undated)
}

// bytes are all that the record still tells of.
func (r *wireRecord) bytes() uint64 {
	t := r.ThisMonth.plus(r.LastMonth).plus(r.Undated)
	return t.Sent + t.Received
}

// month is how a month is written; its order is that of time.
func month(t time.Time) string { return t.UTC().Format("2006-01") }

// book adds what was carried to the month of now. A month that lies in the future was
// written under a clock that ran ahead: it is this one.
func (r *wireRecord) book(more traffic, now time.Time, trusted bool) {
	r.Undated = r.Undated.plus(more)
	if !trusted {
		return
	}
	switch m := month(now); {
	case r.Month == m:
	case r.Month < m && r.Month != "":
		last := month(now.UTC().AddDate(0, 0, -now.UTC().Day()))
		r.LastMonth = traffic{}
		if r.Month == last {
			r.LastMonth = r.ThisMonth
		}
		r.Month, r.ThisMonth = m, traffic{}
	default:
		r.Month = m
	}
	r.ThisMonth, r.Undated = r.ThisMonth.plus(r.Undated), traffic{}
}

// wireAccount is one identity's, over reloads too.
type wireAccount struct {
	wire hub.Wire
	now  func() (t time.Time, trusted bool)
	gone bool // no identity has it; guarded by wireBook.mu

	mu     sync.Mutex
	booked traffic // of wire
	record wireRecord
}

// wireReport is what /status says of one identity's bytes.
type wireReport struct {
	traffic // since the start
	wireRecord
}

// report books what is new, and returns a copy.
func (a *wireAccount) report() wireReport {
	now, trusted := a.now()
	sent, received := a.wire.Bytes()
	a.mu.Lock()
	defer a.mu.Unlock()
	// Two readers may come here in another order than they counted in.
	total := traffic{max(sent, a.booked.Sent), max(received, a.booked.Received)}
	a.record.book(traffic{total.Sent - a.booked.Sent, total.Received - a.booked.Received}, now, trusted)
	a.booked = total
	return wireReport{total, a.record}
}

// wireBook keeps the bytes on the wire by identity and month, over restarts.
type wireBook struct {
	path string
	now  func() (t time.Time, trusted bool)
	log  *zap.Logger

	mu       sync.Mutex
	accounts map[string]*wireAccount
	saved    map[string]wireRecord // as on disk; belongs to Run
}

// openWireBook reads what is kept. A file that cannot be read is reported and begun
// anew: the count is not worth a gateway that does not start.
func openWireBook(stateDir string, now func() (time.Time, bool), log *zap.Logger) *wireBook {
	b := &wireBook{path: filepath.Join(stateDir, "wire.json"), now: now, log: log, accounts: map[string]*wireAccount{}}
	saved, err := readWire(b.path)
	if err != nil {
		log.Warn("the count of bytes on the wire begins anew", zap.Error(err))
	}
	b.saved = saved
	for name, r := range saved {
		b.accounts[name] = &wireAccount{now: now, record: r, gone: true}
	}
	return b
}

func readWire(path string) (map[string]wireRecord, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxWireFile))
	if err != nil {
		return nil, err
	}
	var saved map[string]wireRecord
	if err := json.Unmarshal(raw, &saved); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return saved, nil
}

// of is the account of an identity.
func (b *wireBook) of(name string) *wireAccount {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.accounts[name]
	if a == nil {
		a = &wireAccount{now: b.now}
		b.accounts[name] = a
	}
	a.gone = false
	return a
}

// leave says that an identity is not configured any more. Its session has ended.
func (b *wireBook) leave(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a := b.accounts[name]; a != nil {
		a.gone = true
	}
}

// total is of all identities, those that are gone included.
func (b *wireBook) total() wireRecord {
	var sum wireRecord
	records := b.bookAll()
	for _, r := range records {
		sum.Month = max(sum.Month, r.Month)
	}
	for _, r := range records {
		if r.Month == sum.Month || r.Month == "" {
			sum.add(r)
		}
	}
	return sum
}

// forget lets go of those that are gone and have carried nothing in this month and the last, and of all but wireGone
// others: those that carried least go into wireOthers, so that the total stays what it is.
func (b *wireBook) forget() {
	records := b.bookAll()
	b.mu.Lock()
	defer b.mu.Unlock()
	var gone []string
	for name, a := range b.accounts {
		r, booked := records[name]
		switch {
		case !a.gone || !booked || name == wireOthers:
		case r.bytes() == 0:
			delete(b.accounts, name)
		default:
			gone = append(gone, name)
		}
	}
	if len(gone) <= wireGone {
		return
	}
	others := b.accounts[wireOthers]
	if others == nil {
		others = &wireAccount{now: b.now}
		b.accounts[wireOthers] = others
	}
	slices.SortFunc(gone, func(x, y string) int {
		one, two := records[x], records[y]
		return cmp.Or(cmp.Compare(one.bytes(), two.bytes()), cmp.Compare(x, y))
	})
	for _, name := range gone[:len(gone)-wireGone] {
		if others.take(records[name]) {
			delete(b.accounts, name)
		}
	}
}

// take adds a record of the same month; false when it is of another.
func (a *wireAccount) take(r wireRecord) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.record.bytes() == 0 {
		a.record.Month = r.Month
	}
	if a.record.Month != r.Month {
		return false
	}
	a.record.add(r)
	return true
}

// Run books and saves until ctx ends, and once more then.
func (b *wireBook) Run(ctx context.Context) error {
	t := time.NewTicker(wireEvery)
	defer t.Stop()
	next := time.Now().Add(wireSave)
	failing := false
	for {
		select {
		case <-ctx.Done():
			b.save(&failing)
			return nil
		case <-t.C:
		}
		if now := time.Now(); now.After(next) {
			next = now.Add(wireSave)
			b.save(&failing)
		} else {
			b.bookAll()
		}
	}
}

// bookAll books every account and returns the records.
func (b *wireBook) bookAll() map[string]wireRecord {
	b.mu.Lock()
	accounts := maps.Clone(b.accounts)
	b.mu.Unlock()
	all := make(map[string]wireRecord, len(accounts))
	for name, a := range accounts {
		all[name] = a.report().wireRecord
	}
	return all
}

// save writes when something changed. failing keeps it from logging twice.
func (b *wireBook) save(failing *bool) {
	b.forget()
	all := b.bookAll()
	if maps.Equal(all, b.saved) {
		return
	}
	raw, err := json.Marshal(all)
	if err == nil {
		err = replaceFile(b.path, raw)
	}
	if err == nil {
		b.saved = all
	} else if !*failing {
		b.log.Warn("the count of bytes on the wire cannot be kept", zap.Error(err))
	}
	*failing = err != nil
}

// replaceFile puts data into a file of mode 0600, so that a crash at any moment leaves
// the old content or the new.
func replaceFile(path string, data []byte) error {
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the error that matters is the first
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
