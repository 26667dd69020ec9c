package certstore

import (
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"time"
)

// timeDaemons asks systemd-timesyncd and chronyd whether the clock is synchronised, and whether one of them is there at
// all. timesyncd's run-time folder appears with it, the file in it with the first synchronisation (systemd-timesyncd(8)).
func timeDaemons(timesync, chronyd string) (synced, present bool) {
	if exists(filepath.Join(timesync, "synchronized")) {
		return true, true
	}
	_, err := os.Stat(timesync)
	present = err == nil
	synced, there := chronySynced(chronyd)
	return synced, present || there
}

// Layout of chrony's command protocol, version 6 (candm.h in chrony's sources): requests are padded to the size of the
// longest reply, so that nobody can use chronyd to amplify traffic.
const (
	chronyRequestLen = 20 + 396
	chronyTracking   = 33
	chronyReply      = 5
	chronyReplyHead  = 28
	chronyLeapAt     = chronyReplyHead + 4 + 20 + 2
	chronyUnsynced   = 3
	chronyWait       = 200 * time.Millisecond
)

// chronySynced sends a tracking request. Where nobody listens the kernel says so at once.
func chronySynced(addr string) (synced, present bool) {
	conn, err := net.DialTimeout("udp", addr, chronyWait)
	if err != nil {
		return false, false
	}
	defer conn.Close()
	req := make([]byte, chronyRequestLen)
	req[0], req[1] = 6, 1
	binary.BigEndian.PutUint16(req[4:], chronyTracking)
	seq := uint32(time.Now().UnixNano())
	binary.BigEndian.PutUint32(req[8:], seq)
	if err := conn.SetDeadline(time.Now().Add(chronyWait)); err != nil {
		return false, false
	}
	if _, err := conn.Write(req); err != nil {
		return false, false
	}
	var reply [512]byte
	n, err := conn.Read(reply[:])
	if err != nil {
		return false, false
	}
	return trackingSynced(reply[:n], seq)
}

// trackingSynced reads a tracking reply; something else is no chronyd.
func trackingSynced(b []byte, seq uint32) (synced, ok bool) {
	if len(b) < chronyLeapAt+2 || b[0] != 6 || b[1] != 2 ||
		binary.BigEndian.Uint16(b[4:]) != chronyTracking || binary.BigEndian.Uint16(b[6:]) != chronyReply ||
		binary.BigEndian.Uint16(b[8:]) != 0 || binary.BigEndian.Uint32(b[16:]) != seq {
		return false, false
	}
	return binary.BigEndian.Uint16(b[chronyLeapAt:]) < chronyUnsynced, true
}
