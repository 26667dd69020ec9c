package main

import (
	"io"
	"log"
	"os"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"
)

// newLogger writes to w: lines for people when format is console, or auto on a
// terminal; JSON otherwise. The level can be changed while running.
//
// Under systemd the journal stamps each line itself, but the JSON keeps its own
// time: it is what survives when lines are shipped elsewhere.
func newLogger(w io.Writer, level zap.AtomicLevel, format string) *zap.Logger {
	return newLoggerTo(w, w, level, format)
}

// newLoggerTo hands the lines that are made for w to out.
func newLoggerTo(w, out io.Writer, level zap.AtomicLevel, format string) *zap.Logger {
	enc := zapcore.EncoderConfig{
		TimeKey: "time", LevelKey: "level", NameKey: "part", MessageKey: "msg",
		EncodeTime:     zapcore.RFC3339TimeEncoder,
		EncodeLevel:    zapcore.LowercaseLevelEncoder,
		EncodeDuration: zapcore.StringDurationEncoder,
		EncodeName:     zapcore.FullNameEncoder,
		LineEnding:     zapcore.DefaultLineEnding,
	}
	var encoder zapcore.Encoder
	if format == "console" || (format == "auto" && isTerminal(w)) {
		enc.EncodeTime = zapcore.TimeEncoderOfLayout(time.TimeOnly)
		enc.EncodeLevel = zapcore.CapitalLevelEncoder
		encoder = zapcore.NewConsoleEncoder(enc)
	} else {
		encoder = zapcore.NewJSONEncoder(enc)
	}
	if toJournal(w) {
		encoder = journalEncoder{encoder, buffer.NewPool()}
	}
	// A log that cannot be written must not disturb the data path; zap drops the
	// line when the write fails.
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(out)), level),
		zap.ErrorOutput(zapcore.AddSync(io.Discard)))
}

// quiet is what servers say of clients that hang up and of descriptors that ran out,
// once per attempt and in lines of their own format: nothing.
func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
