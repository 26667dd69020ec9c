//go:build !only_journal && !only_pebble

package main

import (
	"encoding/binary"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
)

type boltStore struct{ db *bolt.DB }

func openBolt(dir string, queues int) engine {
	db, err := bolt.Open(filepath.Join(dir, "bolt.db"), 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, NoFreelistSync: true})
	check(err)
	check(db.Update(func(tx *bolt.Tx) error { _, err := tx.CreateBucketIfNotExists([]byte("m")); return err }))
	return newFront(&boltStore{db}, queues)
}

func (s *boltStore) commit(ops []op) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("m"))
		for i := range ops {
			o := &ops[i]
			if o.upTo != 0 {
				c := b.Cursor()
				for k, _ := c.Seek(key(o.queue, 0)); k != nil && binary.BigEndian.Uint32(k) == uint32(o.queue) && binary.BigEndian.Uint64(k[4:]) <= o.upTo; k, _ = c.Next() {
					if err := c.Delete(); err != nil {
						return err
					}
				}
				continue
			}
			if err := b.Put(key(o.queue, o.seq), append([]byte(meta), o.payload...)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *boltStore) next(queue int, after uint64) (seq uint64, payload []byte, ok bool) {
	check(s.db.View(func(tx *bolt.Tx) error {
		k, v := tx.Bucket([]byte("m")).Cursor().Seek(key(queue, after+1))
		if k != nil && binary.BigEndian.Uint32(k) == uint32(queue) {
			seq, payload, ok = binary.BigEndian.Uint64(k[4:]), append([]byte(nil), v[len(meta):]...), true
		}
		return nil
	}))
	return
}

func (s *boltStore) last(int) uint64 { return 0 }
func (s *boltStore) close()          { check(s.db.Close()) }
