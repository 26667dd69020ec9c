package hub

import (
	"context"
	"crypto/x509"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/certstore"
	"gatewayd/internal/queue"
)

// Session is one identity's life at the hub: it connects, proves the certificate,
// publishes what the queue holds, changes certificates, and begins again when a
// connection ends.
type Session struct {
	cfg   Config
	q     outbox
	creds Credentials
	pacer *Pacer
	root  *zap.Logger

	events string // topic
	dial   dialer
	keep   *keeper // nil: the keep-alive is fixed
	board  board
	shown  *conn // what Status looks at; guarded by board.mu
	turns  atomic.Uint64

	// All below belongs to Run's goroutine.
	wg      sync.WaitGroup // readers and trials
	backoff backoff
	pace    pace
	// paceTold is the limit that status shows.
	paceTold int
	live     live
	cut      cutover
	limbo    map[uint64]struct{} // sent on an earlier connection and not acknowledged
	judge    judge
	spare    spare
	told     Kind   // kind of the fault that was logged last; "" when connected
	woken    string // credentials for which a wait was cut short
	alarm    alarm
	leftOut  int    // connections given up over a lost acknowledgement, in a row
	topic    []byte // scratch
	element  []byte // scratch

	openPacks   func() (boundaries, error) // nil: packs are not written down
	packs       *packs                     // nil until a reading has to be packed
	sharedPacks atomic.Pointer[packs]      // the same, for connections' readers

	suspicious atomic.Bool // poison is active
	poisonMu   sync.Mutex
	poison     poison // guarded by poisonMu
}

// NewSession makes a session for one identity; it starts nothing and touches no
// network. The queue and the credentials are the identity's own, the pacer is
// shared by all.
func NewSession(cfg Config, q *queue.Queue, creds Credentials, pacer *Pacer, log *zap.Logger) *Session {
	s := newSession(cfg, queueOutbox{q}, creds, pacer, log)
	if open := cfg.Packs; open != nil { // cfg is large, and not to be kept a second time
		s.openPacks = func() (boundaries, error) {
			q, err := open()
			return queueOutbox{q}, err
		}
	}
	return s
}

func newSession(cfg Config, q outbox, creds Credentials, pacer *Pacer, log *zap.Logger) *Session {
	s := &Session{cfg: cfg.withDefaults(), q: q, creds: creds, pacer: pacer, root: log}
	s.events = s.cfg.eventsTopic()
	s.dial.cfg = &s.cfg
	if s.cfg.KeepAliveAuto {
		s.keep = &keeper{now: min(s.cfg.KeepAlive, keepAliveStart)}
	}
	s.backoff.t = &s.cfg.Timing
	s.pace = pace{limit: s.cfg.Window, most: s.cfg.Window}
	s.paceTold = s.cfg.Window
	s.poison.limit = s.cfg.Timing.PoisonDeaths
	s.board.st = Status{Identity: cfg.Name, State: StateNew, Since: time.Now(), Window: s.cfg.Window, Connects: map[string]uint64{}}
	return s
}

// log is for lines with the identity's name. It is made when there is something to
// say: kept by each of many sessions that have nothing to, it would cost 1.5 KiB.
func (s *Session) log() *zap.Logger { return s.root.With(zap.String("identity", s.cfg.Name)) }

// Run keeps the identity connected until ctx ends. Then it stops sending, waits a
// bounded time for outstanding acknowledgements, says goodbye and returns nil when
// everything that it started has ended. What the hub does is never an error.
func (s *Session) Run(ctx context.Context) error {
	s.alarm.init()
	defer s.alarm.stop()
	defer s.board.state(StateStopped)
	if s.unusable() {
		<-ctx.Done()
		return nil
	}
	if s.cfg.Ready != nil {
		s.cfg.Ready(ctx)
	}
	for ctx.Err() == nil {
		cred := s.choose()
		if cred == nil {
			s.awaitCredential(ctx)
			continue
		}
		end := s.attempt(ctx, cred)
		if ctx.Err() != nil {
			break
		}
		if wait := s.weigh(end); wait > 0 {
			s.pause(ctx, wait, end.fault.Kind)
		}
	}
	if s.packs != nil {
		s.packs.budget.leave(s.packs)
	}
	s.wg.Wait()
	return nil
}

// unusable says, on the board and in the log, when the configuration allows no session.
func (s *Session) unusable() bool {
	err := s.cfg.Validate()
	if err == nil {
		return false
	}
	f := &Fault{Kind: Local, Step: StepName, Text: err.Error(), Err: err}
	s.board.state(string(Local))
	s.board.set(func(st *Status) { st.Fault = f })
	s.log().Error("identity cannot be used", zap.Error(err))
	return true
}

// ending is how a connection, or the attempt at one, ended.
type ending struct {
	cred     *certstore.Credential
	fault    *Fault // nil when this side ended it
	accepted time.Time
	proved   bool
	byPeer   bool
	answered bool   // the hub has answered more than CONNECT
	acked    bool   // at least one message was acknowledged
	oldest   uint64 // message that was the oldest in flight; 0: none
	inFlight int
}

// attempt makes one connection with cred and stays with it, and with what replaces
// it, to the end.
func (s *Session) attempt(ctx context.Context, cred *certstore.Credential) *ending {
	c, fault := s.open(ctx, cred)
	if fault != nil {
		return &ending{cred: cred, fault: fault}
	}
	s.take(c)
	return s.serve(ctx)
}

// open makes one connection: its turn, TCP, TLS, CONNECT accepted.
func (s *Session) open(ctx context.Context, cred *certstore.Credential) (*conn, *Fault) {
	if s.told == "" {
		s.dial.waits("")
		s.board.state(StateConnecting)
	}
	if err := s.pacer.connect(ctx); err != nil {
		return nil, classify(err, StepName, false)
	}
	tr, fault := s.dialApart(ctx, cred)
	if fault != nil {
		return nil, fault
	}
	s.dial.waits(StepConnect)
	c := s.connect(cred, tr)
	if err := c.await(ctx, s.cfg.Timing.Connack); err != nil {
		c.kill(err)
		<-c.dead
		return nil, classify(err, StepConnect, c.presented)
	}
	return c, nil
}

// dialApart dials on a goroutine that ends with the handshake: it needs a deep stack,
// which the session's own would keep for as long as the connection lives.
func (s *Session) dialApart(ctx context.Context, cred *certstore.Credential) (tr *transport, fault *Fault) {
	done := make(chan struct{})
	s.wg.Go(func() {
		defer close(done)
		tr, fault = s.dial.dial(ctx, cred)
	})
	<-done
	return tr, fault
}

// connect sends CONNECT over a finished transport.
func (s *Session) connect(cred *certstore.Credential, tr *transport) *conn {
	keepAlive := s.cfg.KeepAlive
	if s.keep != nil {
		keepAlive = MaxKeepAlive
	}
	c := newConn(settings{
		id: &s.cfg.Identity, product: s.cfg.Product, keepAlive: keepAlive, keep: s.keep, window: s.cfg.Window,
		writeTimeout: s.cfg.Timing.Write, commands: s.cfg.Commands, acked: s.acked,
		delivered: &s.board.delivered, unknownAcks: &s.board.unknownAcks,
	}, cred, tr)
	c.start(&s.wg)
	return c
}

// choose says which credential to present next. The spare goes when it is its turn;
// else a candidate goes first; after a
// failure it is the other one's turn, so that both get their chance while neither
// works.
func (s *Session) choose() *certstore.Credential {
	current, candidate := s.creds.Current(), s.creds.Candidate()
	switch {
	case s.spare.turn:
		return s.spare.cred
	case candidate == nil:
		return current
	case current == nil, !s.judge.currentsTurn:
		return candidate
	}
	return current
}

func (s *Session) awaitCredential(ctx context.Context) {
	s.board.state(StateNoCertificate)
	select {
	case <-ctx.Done():
	case <-s.creds.Changed():
	}
}

// weigh draws the conclusions from an ending: what it says about the certificate,
// about the oldest message, and how long to wait; 0 means try again at once.
func (s *Session) weigh(e *ending) time.Duration {
	lived := time.Duration(0)
	if !e.accepted.IsZero() {
		lived = time.Since(e.accepted)
		s.poisonDied(e)
	} else {
		s.board.count(string(e.fault.Kind))
	}
	shrunk := e.byPeer && s.pace.shrink(e.inFlight)
	if s.backoff.closed(e, shrunk, lived) {
		e.fault = contested(s.backoff.young, s.cfg.Timing.Stable)
	}
	again, known := s.spare.weigh(&s.judge, s.creds, e)
	if !known {
		again = s.judge.weigh(s.creds, e)
	}
	if again {
		if !e.proved {
			s.board.set(func(st *Status) { st.TrialFault = e.fault })
		}
		return 0
	}
	wait := max(s.backoff.next(e.fault.Kind), time.Millisecond)
	s.report(e, wait)
	return wait
}

// report tells the board, and the log when the kind of trouble is a new one.
func (s *Session) report(e *ending, wait time.Duration) {
	s.board.state(string(e.fault.Kind))
	s.board.set(func(st *Status) {
		st.Fault, st.Attempt, st.NextTry = e.fault, s.backoff.fails, time.Now().Add(wait)
		st.Fingerprint, st.Remote, st.Transport = "", "", ""
	})
	if e.fault.Kind == s.told {
		return
	}
	s.told = e.fault.Kind
	s.log().Warn("not connected to the hub", zap.String("state", string(e.fault.Kind)), zap.Error(e.fault),
		zap.String("hint", e.fault.Hint), zap.String("fingerprint", e.cred.Fingerprint()), zap.Duration("wait", wait))
}

// pause waits before the next attempt. A credential that was not there when the
// attempt failed ends the wait, once: it may be the remedy. It does not when the
// trouble is another client. When the hub was not trusted the time may have been
// wrong: then a clock that stepped, which the store signals too, is a remedy. So are
// other roots.
func (s *Session) pause(ctx context.Context, wait time.Duration, k Kind) {
	t := time.NewTimer(wait)
	defer t.Stop()
	var look <-chan time.Time
	var roots *x509.CertPool
	if k == Untrusted {
		ticker := time.NewTicker(rootsEvery)
		defer ticker.Stop()
		look, roots = ticker.C, s.cfg.Roots()
	}
	before, clock := s.credentials(), s.cfg.Clock.Generation()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			return
		case <-look:
			if !roots.Equal(s.cfg.Roots()) {
				s.backoff.progress()
				return
			}
		case <-s.creds.Changed():
			if k == Untrusted && s.cfg.Clock.Generation() != clock {
				s.backoff.progress()
				return
			}
			now := s.credentials()
			if k != Contested && now != before && now != s.woken {
				s.woken = now
				s.backoff.progress()
				return
			}
		}
	}
}

// rootsEvery is how often it is looked whether the roots have changed, while a wait
// depends on them.
const rootsEvery = 2 * time.Second

// credentials names what could be dialled with.
func (s *Session) credentials() string {
	var names string
	for _, c := range []*certstore.Credential{s.creds.Current(), s.creds.Candidate()} {
		if c != nil {
			names += c.Fingerprint()
		}
		names += "/"
	}
	return names
}

// acked is called by connections' readers, in the order of sending. It returns how
// many readings the message was.
func (s *Session) acked(seq uint64) int {
	n, packed := 1, false
	if ps := s.sharedPacks.Load(); ps != nil {
		n, packed = ps.ack(s.q, seq)
	}
	if !packed {
		s.q.Ack(seq)
		n = 1
	}
	if s.suspicious.Load() {
		s.withPoison(func(p *poison) { p.acked(seq) })
	}
	return n
}

// withPoison looks at the suspicion under its lock.
func (s *Session) withPoison(f func(*poison)) {
	s.poisonMu.Lock()
	defer s.poisonMu.Unlock()
	f(&s.poison)
	s.suspicious.Store(s.poison.active())
}

// poisonDied draws the conclusion from a connection that the hub closed.
func (s *Session) poisonDied(e *ending) {
	if !e.byPeer || e.oldest == 0 && !s.suspicious.Load() {
		return
	}
	var condemned uint64
	s.withPoison(func(p *poison) { condemned = p.died(e.oldest, e.inFlight) })
	if condemned != 0 {
		s.pace.limit = s.pace.most
		s.condemn(condemned, "the hub closes the connection over it, and acknowledges others")
	}
}
