package main

import (
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
)

// toJournal tells whether w goes to systemd's journal: JOURNAL_STREAM of
// systemd.exec(5) is device:inode of the stream that the service was started with.
func toJournal(w io.Writer) bool {
	device, inode, ok := strings.Cut(os.Getenv("JOURNAL_STREAM"), ":")
	f, isFile := w.(*os.File)
	if !ok || !isFile {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && strconv.FormatUint(uint64(stat.Dev), 10) == device && strconv.FormatUint(stat.Ino, 10) == inode
}

// journalEncoder puts the priority of sd-daemon(3) before each line, which the
// journal takes off and keeps: journalctl -p warning then shows what it says.
type journalEncoder struct {
	zapcore.Encoder
	pool buffer.Pool
}

func (e journalEncoder) Clone() zapcore.Encoder { return journalEncoder{e.Encoder.Clone(), e.pool} }

func (e journalEncoder) EncodeEntry(entry zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	line, err := e.Encoder.EncodeEntry(entry, fields)
	if err != nil {
		return nil, err
	}
	defer line.Free()
	out := e.pool.Get()
	out.AppendString(journalPriority(entry.Level))
	_, err = out.Write(line.Bytes())
	return out, err
}

func journalPriority(l zapcore.Level) string {
	switch {
	case l >= zapcore.ErrorLevel:
		return "<3>"
	case l == zapcore.WarnLevel:
		return "<4>"
	case l == zapcore.InfoLevel:
		return "<6>"
	}
	return "<7>"
}
