//go:build !only_journal && !only_bbolt

package main

import (
	"encoding/binary"

	"github.com/cockroachdb/pebble/v2"
)

type pebbleStore struct {
	db *pebble.DB
	it map[int]*pebble.Iterator
}

type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(f string, a ...any) {
	panic(f)
}

func openPebble(dir string, queues int) engine {
	db, err := pebble.Open(dir, &pebble.Options{MemTableSize: 4 << 20, Logger: quiet{}, FormatMajorVersion: pebble.FormatNewest})
	check(err)
	return newFront(&pebbleStore{db: db, it: map[int]*pebble.Iterator{}}, queues)
}

func (s *pebbleStore) commit(ops []op) error {
	b := s.db.NewBatch()
	defer b.Close()
	var v []byte
	for i := range ops {
		o := &ops[i]
		var err error
		if o.upTo != 0 {
			err = b.DeleteRange(key(o.queue, 0), key(o.queue, o.upTo+1), nil)
		} else {
			v = append(append(v[:0], meta...), o.payload...)
			err = b.Set(key(o.queue, o.seq), v, nil)
		}
		if err != nil {
			return err
		}
	}
	return b.Commit(pebble.Sync)
}

// next keeps one iterator over everything while a queue is drained and makes a new one at its end: an iterator sees what was there when it was made.
func (s *pebbleStore) next(queue int, after uint64) (uint64, []byte, bool) {
	it := s.it[0]
	for try := range 2 {
		if it == nil {
			var err error
			it, err = s.db.NewIter(nil)
			check(err)
			s.it[0] = it
		}
		k := key(queue, after+1)
		ok := it.SeekGE(k)
		if ok && binary.BigEndian.Uint32(it.Key()) == uint32(queue) {
			v := it.Value()
			return binary.BigEndian.Uint64(it.Key()[4:]), append([]byte(nil), v[len(meta):]...), true
		}
		if try == 0 {
			check(it.Close())
			it = nil
			s.it[0] = nil
		}
	}
	return 0, nil, false
}

func (s *pebbleStore) last(int) uint64 { return 0 }

func (s *pebbleStore) close() {
	for _, it := range s.it {
		if it != nil {
			check(it.Close())
		}
	}
	check(s.db.Close())
}
