package downstream

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/queue"
)

// The line protocol of programs: each line from the program is a JSON object
//
//	{"id": 1, "topic": "...", "payload": any JSON, "properties": {"key": "value"}}
//
// with payload_base64 in place of payload for bytes, and content_type where the
// route leaves it open. Each line to the program answers one of them, in any
// order: {"ack":1} once the message is on disk, {"nack":1,"error":"..."} when it
// is refused, with "retry":true when sending it again later may succeed. A line
// that cannot be read is answered with {"nack":null,...}. A message without an id
// gets no answer.

// Bounds of the line protocol.
const (
	maxLineID     = 256
	keptLine      = 64 << 10 // a buffer that grew beyond is not kept for the next line
	answerTimeout = time.Minute
	answerDrain   = 5 * time.Second // for answers, when a stream ends or the gateway stops
	lastAnswers   = time.Second     // for writing what is left after that
)

// LineLimits bound what a program hands in. Zero values are the defaults.
type LineLimits struct {
	MaxLine  int // bytes of one line; default 512 KiB
	InFlight int // messages without an answer; default 1,000
}

func (l LineLimits) withDefaults() LineLimits {
	if l.MaxLine <= 0 {
		l.MaxLine = 512 << 10
	}
	if l.InFlight <= 0 {
		l.InFlight = 1000
	}
	return l
}

var errLongLine = errors.New("line too long")

// lineItem is one line from a program.
type lineItem struct {
	ID json.RawMessage `json:"id"`
	batchItem
}

// parseLine reads one line. The id is returned with an error too, where the line
// has one, so that the program knows what is refused.
func parseLine(raw []byte) (id json.RawMessage, a Arrival, err error) {
	var item lineItem
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&item); err != nil {
		var just struct {
			ID json.RawMessage `json:"id"`
		}
		if json.Unmarshal(raw, &just) != nil || !soundID(just.ID) {
			just.ID = nil
		}
		return just.ID, Arrival{}, fmt.Errorf("%w: not a message: %w", errMalformed, err)
	}
	if !soundID(item.ID) {
		return nil, Arrival{}, fmt.Errorf("%w: id is not a string or number of at most %d bytes", errMalformed, maxLineID)
	}
	if len(bytes.TrimSpace(raw[d.InputOffset():])) > 0 {
		return item.ID, Arrival{}, fmt.Errorf("%w: more than one JSON value in a line", errMalformed)
	}
	a, err = item.arrival()
	return item.ID, a, err
}

// soundID admits what can be sent back as it is; nil is no id.
func soundID(id json.RawMessage) bool {
	return len(id) == 0 || len(id) <= maxLineID && (id[0] == '"' || id[0] == '-' || id[0] >= '0' && id[0] <= '9')
}

// lineReader is the side of a stream that a program writes to; a deadline in the
// past ends a read under way.
type lineReader interface {
	io.Reader
	SetReadDeadline(time.Time) error
}

type lineWriter interface {
	io.Writer
	SetWriteDeadline(time.Time) error
}

// lineStream is the protocol with one program. It owns one goroutine that reads
// and one that writes answers. A program that does not read its answers is not
// read from any more.
type lineStream struct {
	gate   *Gate
	client *Client
	limits LineLimits
	log    *zap.Logger
	notes  *notes
	in     lineReader
	out    lineWriter

	room  chan struct{} // one-slot: a message was answered
	ready chan struct{} // one-slot: there are answers to write

	mu       sync.Mutex
	inFlight int // messages without a written answer
	answers  []byte
	answered int // of inFlight, those in answers
	broken   error
	ending   bool
}

// serve handles messages until the program ends the stream, then answers what is
// on its way. It returns nil at the end of the stream, when ctx ends and after
// a read deadline; otherwise why the stream is unusable.
func (s *lineStream) serve(ctx context.Context) error {
	s.room, s.ready = make(chan struct{}, 1), make(chan struct{}, 1)
	stop := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() { s.writeAnswers(stop) })
	err := s.read(ctx)
	s.drain()
	close(stop)
	writing.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	return err
}

func (s *lineStream) read(ctx context.Context) error {
	r := bufio.NewReaderSize(s.in, 16<<10)
	var buf []byte
	for {
		line, err := readLine(r, buf[:0], s.limits.MaxLine)
		if cap(line) <= keptLine {
			buf = line
		}
		if text := bytes.TrimSpace(line); len(text) > 0 || errors.Is(err, errLongLine) {
			if !s.take(ctx) {
				return nil
			}
			s.handle(ctx, text, err)
		}
		if err != nil && !errors.Is(err, errLongLine) {
			if errors.Is(err, io.EOF) || isTimeout(err) {
				return nil
			}
			return err
		}
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// readLine appends a line to buf, without more memory than its bound: the rest of
// a longer one is read away and errLongLine returned.
func readLine(r *bufio.Reader, buf []byte, most int) ([]byte, error) {
	long := false
	for {
		part, err := r.ReadSlice('\n')
		if len(buf)+len(part) > most+1 { // the line's end does not count
			long = true
			buf = buf[:0]
		}
		if !long {
			buf = append(buf, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err == nil && long:
			return buf, errLongLine
		}
		return buf, err
	}
}

// take waits for room for one more message.
func (s *lineStream) take(ctx context.Context) bool {
	for {
		s.mu.Lock()
		if s.broken != nil {
			s.mu.Unlock()
			return false
		}
		if s.inFlight < s.limits.InFlight {
			s.inFlight++
			s.mu.Unlock()
			return true
		}
		s.mu.Unlock()
		select {
		case <-s.room:
		case <-ctx.Done():
			return false
		}
	}
}

// handle hands in what one line says; problem is what is wrong with the line itself.
func (s *lineStream) handle(ctx context.Context, line []byte, problem error) {
	if errors.Is(problem, errLongLine) {
		err := fmt.Errorf("%w: the limit is %d bytes", queue.ErrTooLarge, s.limits.MaxLine)
		s.client.refused("", err)
		s.answer(json.RawMessage("null"), "", err)
		return
	}
	id, a, err := parseLine(line)
	if err != nil {
		if id == nil {
			id = json.RawMessage("null")
		}
		s.client.refused("", ErrTopic)
		s.answer(id, "", err)
		return
	}
	a.Client = s.client
	topic := a.Topic
	if err := s.gate.Accept(ctx, a, func(_ uint64, err error) { s.answer(id, topic, err) }); err != nil {
		s.answer(id, topic, err)
	}
}

// answer notes what became of a message. It is called from the queue's goroutine.
func (s *lineStream) answer(id json.RawMessage, topic string, err error) {
	if err != nil && !retriable(err) {
		s.notes.once(s.client.Name(), err.Error(), func() {
			s.log.Warn("message refused", zap.String("source", s.client.Name()), zap.String("topic", clip(topic)), zap.Error(err))
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(id) == 0 {
		s.inFlight--
		wake(s.room)
		return
	}
	s.answers = appendAnswer(s.answers, id, err)
	s.answered++
	wake(s.ready)
}

// retriable tells whether the same line may be taken later.
func retriable(err error) bool { return temporary(err) && !errors.Is(err, errMalformed) }

func appendAnswer(b []byte, id json.RawMessage, err error) []byte {
	if err == nil {
		b = append(b, `{"ack":`...)
		b = append(b, id...)
		return append(b, "}\n"...)
	}
	b = append(b, `{"nack":`...)
	b = append(b, id...)
	b = append(b, `,"error":`...)
	text, _ := json.Marshal(err.Error()) // a string always has a form
	b = append(b, text...)
	if retriable(err) {
		b = append(b, `,"retry":true`...)
	}
	return append(b, "}\n"...)
}

// writeAnswers runs until stop, and then writes what is left. After a failure
// nothing more is read or written.
func (s *lineStream) writeAnswers(stop <-chan struct{}) {
	for last := false; !last; {
		select {
		case <-s.ready:
		case <-stop:
			last = true
		}
		s.mu.Lock()
		b, n := s.answers, s.answered
		s.answers, s.answered = nil, 0
		dead := s.broken != nil
		if n > 0 && !s.ending {
			s.out.SetWriteDeadline(time.Now().Add(answerTimeout))
		}
		s.mu.Unlock()
		if n == 0 || dead {
			continue
		}
		_, err := s.out.Write(b)
		s.mu.Lock()
		s.inFlight -= n
		if err != nil && s.broken == nil {
			s.broken = fmt.Errorf("answers are not taken: %w", err)
			s.in.SetReadDeadline(time.Unix(1, 0))
		}
		s.mu.Unlock()
		wake(s.room)
	}
}

// drain waits until everything on its way is answered, within a limit.
func (s *lineStream) drain() {
	limit := time.NewTimer(answerDrain)
	defer limit.Stop()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ending = true
		s.out.SetWriteDeadline(time.Now().Add(lastAnswers))
	}()
	for {
		s.mu.Lock()
		over := s.inFlight == 0 || s.broken != nil
		s.mu.Unlock()
		if over {
			return
		}
		select {
		case <-s.room:
		case <-limit.C:
			return
		}
	}
}
