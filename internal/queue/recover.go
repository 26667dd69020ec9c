package queue

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const lockName = "lock"

// damagedDir keeps bytes that did not check, for inspection.
const damagedDir = "damaged"

// found is a file of the folder with what its header says.
type found struct {
	slot   *slot
	head   segHeader
	ok     bool // the header checks
	used   bool
	unread bool // may not be read
	err    error
}

// recovery is what Open learns.
type recovery struct {
	j      *Journal
	files  map[uint32]*found
	segs   map[uint64]segmentItem
	freed  map[uint64]bool
	states map[uint32]*queueState
	names  map[uint32]string
	left   []leftItem // copies that a later record replaced
	whole  bool       // a snapshot was found: queues that it does not name were dropped
	forgot map[uint32]bool

	root    uint64                 // the segment whose snapshot counts
	kept    map[uint32]segmentItem // by slot: files that could not be read at an earlier start
	held    map[uint32]*queueState // where the queues stood when the first of them could not
	heldRaw map[uint32][]byte
	alias   map[uint32]uint32 // number of a queue in such a file: the number it has now
	unknown int               // files that cannot be read and are in no list
}

type segmentItem struct {
	id   uint64
	slot uint32
	salt uint32
	end  int64
	cold bool
}

type leftItem struct {
	qid  uint32
	from uint8
	seq  uint64
}

func (j *Journal) recover() error {
	r := &recovery{j: j, files: map[uint32]*found{}, segs: map[uint64]segmentItem{}, freed: map[uint64]bool{}, states: map[uint32]*queueState{}, names: map[uint32]string{}, forgot: map[uint32]bool{},
		kept: map[uint32]segmentItem{}, held: map[uint32]*queueState{}, heldRaw: map[uint32][]byte{}, alias: map[uint32]uint32{}}
	if err := r.inventory(); err != nil {
		return err
	}
	if err := r.journal(); err != nil {
		return err
	}
	if err := r.segments(); err != nil {
		return err
	}
	if err := r.queues(); err != nil {
		return err
	}
	r.spare()
	return nil
}

// inventory reads the header of every file before anything is changed.
func (r *recovery) inventory() error {
	j := r.j
	names, err := j.fs.list(j.o.Dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		hex, isSlot := strings.CutSuffix(n, slotSuffix)
		num, err := strconv.ParseUint(hex, 16, 32)
		if !isSlot || err != nil || len(hex) != 8 {
			if n != lockName {
				j.report(Event{Kind: EventForeign, File: j.path(n)})
			}
			continue
		}
		s := &slot{num: uint32(num), name: j.path(n)}
		j.nextSlot = max(j.nextSlot, s.num+1)
		x := &found{slot: s}
		if err := r.readHeader(x); err != nil {
			return err
		}
		if x.ok && x.head.version > formatVersion {
			return &VersionError{File: s.name, Version: x.head.version, Known: formatVersion}
		}
		r.files[s.num] = x
		j.slotBytes += s.size
		if x.ok {
			j.nextSeg.Store(max(j.nextSeg.Load(), x.head.id))
		}
	}
	return r.allBad()
}

func (r *recovery) readHeader(x *found) error {
	f, err := r.j.fs.open(x.slot.name, openRead)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EIO) {
		r.unreadable(x, err)
		return nil
	}
	if errors.Is(err, errNotAFile) {
		r.j.report(Event{Kind: EventForeign, File: x.slot.name, Err: err})
		x.used = true
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		r.j.report(Event{Kind: EventMissing, File: x.slot.name, Err: err})
		x.used = true
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if x.slot.size, err = f.size(); err != nil {
		return err
	}
	b := make([]byte, blockBytes)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EIO) {
		return err
	}
	if x.head, x.ok = parseSegBlock(b[:n]); x.ok {
		return nil
	}
	bad := err
	if x.head, x.ok, err = rebuildHeader(f); x.ok {
		r.j.report(Event{Kind: EventDamage, File: x.slot.name, Reason: "segment header"})
	} else if bad = errors.Join(bad, err); errors.Is(bad, syscall.EIO) {
		r.unreadable(x, bad)
		return nil
	}
	return err
}

// unreadable leaves a file alone that cannot be read at the moment.
func (r *recovery) unreadable(x *found, err error) {
	r.j.report(Event{Kind: EventUnreadable, File: x.slot.name, Err: err})
	x.used, x.unread, x.ok, x.err = true, true, false, err // never overwritten
}

// allBad says that the disk cannot be read at all: no time to begin anew on it.
func (r *recovery) allBad() error {
	var err error
	for _, x := range r.files {
		if !x.unread || !errors.Is(x.err, syscall.EIO) {
			return nil
		}
		err = x.err
	}
	return err
}

// journal finds the newest whole snapshot and reads on from there.
func (r *recovery) journal() error {
	var normal []*found
	for _, x := range r.files {
		if x.ok && !x.head.cold {
			normal = append(normal, x)
		}
	}
	slices.SortFunc(normal, func(a, b *found) int { return cmp.Compare(b.head.id, a.head.id) })
	root := len(normal)
	for i, x := range normal {
		ok, err := r.hasSnapshot(x)
		if errors.Is(err, syscall.EIO) {
			r.unreadable(x, err)
			continue
		}
		if err != nil {
			return err
		}
		if ok {
			root, r.root = i, x.head.id
			break
		}
	}
	r.whole = root < len(normal)
	r.j.rolling = root > 0 && len(normal) > 0
	for i := min(root, len(normal)-1); i >= 0; i-- {
		if normal[i].unread {
			continue
		}
		if err := r.read(normal[i], i == root); err != nil {
			return err
		}
	}
	if len(normal) > 0 {
		h := normal[0].head
		if h.machine != r.j.machine && h.machine != [16]byte{} && r.j.machine != [16]byte{} {
			r.j.report(Event{Kind: EventCopied, File: normal[0].slot.name})
		}
		if h.instance != [16]byte{} { // else it is not known
			r.j.instance = h.instance
		}
	}
	return nil
}

// hasSnapshot says whether the first group of a segment is whole and holds all state.
func (r *recovery) hasSnapshot(x *found) (bool, error) {
	f, release, err := r.j.files.get(x.slot)
	if err != nil {
		return false, err
	}
	defer release()
	begun, ended := false, false
	s := scanner{f: f, salt: x.head.salt, size: x.slot.size, end: -1, damage: func(int64, int64) {}, visit: func(*scanned) {}}
	s.off = segDataStart
	for s.off+frameHeaderLen <= s.size {
		h, frame, ok, err := s.frame(s.off, s.size)
		if err != nil {
			return false, err
		}
		if !ok || h.group != 0 {
			return false, nil
		}
		s.items(frame, s.off, false)
		for _, it := range s.group {
			begun = begun || it.kind == itemSnapshot
			ended = ended || it.kind == itemEnd
		}
		s.group = s.group[:0]
		if h.flags&frameLast != 0 {
			return begun && ended, nil
		}
		s.off += int64(h.span)
	}
	return false, nil
}

// read applies all that a segment says. These segments are in use until the end of their groups is found here.
func (r *recovery) read(x *found, root bool) error {
	j := r.j
	f, release, err := j.files.get(x.slot)
	if err != nil {
		return err
	}
	defer release()
	g := &segment{id: x.head.id, salt: x.head.salt, slot: x.slot}
	g.sealed.Store(true)
	s := scanner{f: f, salt: g.salt, size: x.slot.size, end: -1}
	s.visit = func(it *scanned) { r.apply(g, it) }
	s.damage = func(off, end int64) { j.damaged(g, off, end) }
	end, err := s.run()
	if err != nil {
		return err
	}
	if s.torn {
		j.stats.Torn++
		j.report(Event{Kind: EventTorn, File: x.slot.name, Offset: end})
	}
	g.end.Store(end)
	x.used = true
	j.segments = append(j.segments, g)
	j.unindexed = append(j.unindexed, g)
	return nil
}

// apply takes one item of the journal into the state.
func (r *recovery) apply(g *segment, it *scanned) {
	c := cursor{b: it.body}
	switch it.kind {
	case itemSnapshot:
		r.j.nextQID = max(r.j.nextQID, uint32(c.uvarint()))
	case itemSegment:
		s, flags, ok := parseSegment(it.body)
		if !ok {
			return
		}
		delete(r.kept, s.slot)
		if flags&flagAbsent != 0 {
			r.kept[s.slot] = s
		}
		if s.id != 0 {
			r.segs[s.id] = s
			delete(r.freed, s.id)
		}
	case itemHeld:
		r.applyHeld(it)
	case itemFreed:
		for len(c.b) > 0 {
			id := c.uvarint()
			delete(r.segs, id)
			r.freed[id] = true
		}
	case itemBoot:
		var id [16]byte
		copy(id[:], c.take(16))
		if off := c.varint(); !c.bad {
			r.j.boots[id] = off
		}
	case itemQueue:
		if qid := uint32(c.uvarint()); !c.bad {
			r.names[qid] = string(c.b)
			r.j.nextQID = max(r.j.nextQID, qid+1)
		}
	case itemForgot:
		if qid := uint32(c.uvarint()); !c.bad {
			delete(r.names, qid)
			delete(r.states, qid)
			delete(r.j.byID, qid)
			r.forgot[qid] = true
		}
	case itemState:
		if s, ok := parseState(it.body); ok && !r.forgot[s.qid] {
			r.lost(s.qid, s.next)
			r.states[s.qid] = &s
		}
	case itemMessage:
		r.message(g, it)
	}
}

func (r *recovery) state(qid uint32) *queueState {
	s := r.states[qid]
	if s == nil {
		s = &queueState{qid: qid, next: 1}
		r.states[qid] = s
	}
	return s
}

// lost counts the sequences between what was seen and what must have been there.
func (r *recovery) lost(qid uint32, next uint64) {
	s := r.states[qid]
	if s == nil || next <= s.next {
		return
	}
	r.j.stats.Damaged += next - s.next
	s.drops[dropDamage] += next - s.next
	s.next = next
}

func (r *recovery) message(g *segment, it *scanned) {
	h := &it.head
	if r.forgot[h.qid] {
		return
	}
	s := r.state(h.qid)
	r.lost(h.qid, h.seq)
	if h.seq >= s.next {
		s.next = h.seq + 1
		if h.leaves == 0 {
			s.appended++
		}
	}
	if h.leaves != 0 {
		r.left = append(r.left, leftItem{h.qid, h.from, h.leaves})
	}
	q := r.queue(h.qid)
	q.laneLocked(h.class).publish(g, h.seq, it.frame, it.item, it.size)
}

// queue finds or makes the queue of a number; the name may come later or be lost.
func (r *recovery) queue(qid uint32) *Queue {
	q := r.j.byID[qid]
	if q == nil {
		q = &Queue{j: r.j, id: qid, next: 1, wnext: 1, ready: make(chan struct{}, 1)}
		q.stored.Store(true)
		r.j.byID[qid] = q
	}
	return q
}
