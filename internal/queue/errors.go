package queue

import (
	"errors"
	"fmt"
)

// Errors named by what the caller does next.
var (
	// ErrFull: the queue or the folder has reached its bound. Tell the sensor to try again later.
	ErrFull = errors.New("queue is full")
	// ErrTooLarge: the message can never be taken. Tell the sensor; permanent.
	ErrTooLarge = errors.New("message is too large for the queue")
	// ErrClosed: the journal is stopping or stopped.
	ErrClosed = errors.New("queue is closed")
	// ErrDisk: the disk takes nothing at the moment (full, read-only, failing). Tell the sensor to try again later.
	ErrDisk = errors.New("disk in trouble, nothing can be stored")
	// ErrLocked: another process has this folder. Exit.
	ErrLocked = errors.New("queue folder is in use by another process")
	// ErrReadOnly: the journal was opened for inspection only.
	ErrReadOnly = errors.New("queue is open for reading only")
	// ErrNotFound: there is no such message or identity.
	ErrNotFound = errors.New("not found")
)

// VersionError says that the folder was written by a newer gatewayd. Nothing has been touched. Install that version again, or drain the queue with it
// first.
type VersionError struct {
	File    string
	Version uint32 // what the file says
	Known   uint32 // the newest version that this program reads
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s has format version %d, this program reads up to %d: start the newer gatewayd and let it drain, or use another state_dir", e.File, e.Version, e.Known)
}
