package queue

import "time"

// Clock tells the wall clock's time and whether it is to be believed (false: a boot without battery at 1970, not yet set).
type Clock interface {
	Now() (t time.Time, trusted bool)
}

// Options of a journal. Only Dir is required.
type Options struct {
	Dir          string        // the journal's folder; created with mode 0700, files 0600
	SegmentBytes int64         // size of one preallocated file, at most an eighth of the disk; 0 = 16 MiB
	MaxBytes     int64         // bound for the folder including what compaction needs; 0 = none
	SyncInterval time.Duration // at most one sync per interval; 0 = every group is synced at once
	PendingBytes int64         // memory for appends not yet synced, Append blocks beyond; 0 = 8 MiB
	Clock        Clock         // nil = the wall clock, trusted
	ReadOnly     bool          // for inspection beside a running daemon: takes no lock, changes nothing
	Report       func(Event)   // told of every change of state; must not block; nil = nobody is told

	// ObserveSync is called from the writer after every sync with its duration (a histogram); must not block; nil = not called.
	ObserveSync func(time.Duration)
}

// EventKind names what an Event reports.
type EventKind string

// The kinds of events. Each is reported when a state begins or changes, never per retry.
const (
	EventTrouble    EventKind = "disk trouble"        // nothing can be stored; Err says why
	EventRecovered  EventKind = "disk recovered"      // storing works again
	EventRewritten  EventKind = "segment abandoned"   // a write or sync failed, the group was written again elsewhere and is safe; once a minute at most
	EventTorn       EventKind = "torn tail cut"       // unacknowledged bytes of a crash were ignored
	EventDamage     EventKind = "damage found"        // File, Offset; what was intact around it is delivered
	EventMissing    EventKind = "segment missing"     // a file that should be there is not
	EventUnreadable EventKind = "file cannot be read" // may not be opened: left alone, and its messages come back at a start that can
	EventForeign    EventKind = "foreign file"        // a file that the journal did not write; left alone
	EventAside      EventKind = "message set aside"   // Identity, Seq
	EventDropping   EventKind = "dropping messages"   // Identity, Reason: the first drop after a while
	EventCopied     EventKind = "folder was copied"   // written on another machine: what was acknowledged there since is sent again
	EventReadError  EventKind = "read failed"         // a stored message cannot be read at the moment
)

// Event is one change of state.
type Event struct {
	Kind     EventKind
	Identity string
	Seq      uint64
	Reason   string
	File     string
	Offset   int64
	Err      error
}

// JournalStats describe the journal at this moment.
type JournalStats struct {
	DiskBytes    int64  // allocated in the folder
	LiveBytes    int64  // of which needed by messages that wait
	DiskWritten  uint64 // bytes handed to the device since Open, in whole blocks
	PayloadBytes uint64 // payload bytes appended since Open; DiskWritten / PayloadBytes is the amplification
	Syncs        uint64
	SyncTime     time.Duration // total time spent in syncs since Open
	LastSync     time.Duration // how long the last one took
	Segments     int
	Free         int    // preallocated and waiting to be used
	Compacted    uint64 // messages moved forward since Open
	Damaged      uint64 // records lost to damage since Open
	Torn         uint64 // groups cut from a torn tail at Open
	Pending      int64  // bytes accepted and not yet synced
	Unreadable   int    // files that could not be read at Open; they are kept as they are
	Trouble      string // the first thing that is wrong; "" when nothing is
}
