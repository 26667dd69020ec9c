package main

import (
	"errors"
	"fmt"
	"reflect"

	"go.uber.org/zap"

	"gatewayd/internal/config"
	"gatewayd/internal/downstream"
	"gatewayd/internal/queue"
)

// sources are where readings come from beside the listeners: brokers, programs
// that the gateway starts, sockets for programs that run by themselves.
type sources struct {
	brokers  []*brokerSource
	programs []*execSource
	sockets  []*socketSource
}

type brokerSource struct {
	cfg config.Broker
	*downstream.Broker
	running *component
}

type execSource struct {
	cfg config.Exec
	*downstream.Exec
	running *component
}

type socketSource struct {
	cfg config.Socket
	*downstream.Socket
	running *component
}

// openSources builds all sources and binds the sockets; it starts nothing. After
// an error nothing is left open.
func openSources(c config.Downstream, gate *downstream.Gate, local *downstream.Local, log *zap.Logger) (*sources, error) {
	s, errs := &sources{}, []error(nil)
	for i, b := range c.Broker {
		one, err := openBroker(i, b, gate, local, log)
		errs = append(errs, err)
		if err == nil {
			s.brokers = append(s.brokers, one)
		}
	}
	for i, e := range c.Exec {
		one, err := openExec(i, e, gate, log)
		errs = append(errs, err)
		if err == nil {
			s.programs = append(s.programs, one)
		}
	}
	for i, k := range c.Socket {
		one, err := openSocket(i, k, gate, log)
		errs = append(errs, err)
		if err == nil {
			s.sockets = append(s.sockets, one)
		}
	}
	if err := errors.Join(errs...); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func openBroker(i int, c config.Broker, gate *downstream.Gate, local *downstream.Local, log *zap.Logger) (*brokerSource, error) {
	b, err := newBroker(c, gate, local, log)
	if err != nil {
		return nil, fmt.Errorf("downstream.broker[%d].%w", i, err)
	}
	return &brokerSource{cfg: c, Broker: b}, nil
}

func newBroker(c config.Broker, gate *downstream.Gate, local *downstream.Local, log *zap.Logger) (*downstream.Broker, error) {
	if !c.LocalTopics {
		local = nil
	}
	return downstream.NewBroker(downstream.BrokerConfig{
		URL: c.URL, ClientID: c.ClientID, Subscribe: c.Subscribe, Username: c.Username, PasswordFile: c.PasswordFile,
		TLS: downstream.BrokerTLS(c.TLS), ReceiveMaximum: c.ReceiveMaximum, SessionExpiry: c.SessionExpiry, Local: local,
	}, gate, log.Named("broker"))
}

func openExec(i int, c config.Exec, gate *downstream.Gate, log *zap.Logger) (*execSource, error) {
	e, err := newExec(c, gate, log)
	if err != nil {
		return nil, fmt.Errorf("downstream.exec[%d].%w", i, err)
	}
	return &execSource{cfg: c, Exec: e}, nil
}

func newExec(c config.Exec, gate *downstream.Gate, log *zap.Logger) (*downstream.Exec, error) {
	return downstream.NewExec(downstream.ExecConfig{
		Name: c.Name, Command: c.Command, Dir: c.Dir, Env: c.Env, Limits: downstream.LineLimits{MaxLine: c.MaxLine, InFlight: c.InFlight},
	}, gate, log.Named("exec"))
}

func openSocket(i int, c config.Socket, gate *downstream.Gate, log *zap.Logger) (*socketSource, error) {
	s, err := newSocket(c, gate, log)
	if err == nil {
		err = s.Listen()
	}
	if err != nil {
		return nil, fmt.Errorf("downstream.socket[%d]: %w", i, err)
	}
	return &socketSource{cfg: c, Socket: s}, nil
}

func newSocket(c config.Socket, gate *downstream.Gate, log *zap.Logger) (*downstream.Socket, error) {
	return downstream.NewSocket(downstream.SocketConfig{
		Name: c.Name, Listen: c.Listen.String(), MaxConnections: c.MaxConnections, Limits: downstream.LineLimits{MaxLine: c.MaxLine, InFlight: c.InFlight},
	}, gate, log.Named("socket"))
}

// checkSources says what is wrong without binding or starting anything.
func checkSources(c config.Downstream, gate *downstream.Gate, problem func(path, reason string)) {
	for i, b := range c.Broker {
		if _, err := newBroker(b, gate, nil, zap.NewNop()); err != nil {
			problem(fmt.Sprintf("downstream.broker[%d]", i), err.Error())
		}
	}
	for i, e := range c.Exec {
		if _, err := newExec(e, gate, zap.NewNop()); err != nil {
			problem(fmt.Sprintf("downstream.exec[%d]", i), err.Error())
		}
	}
	for i, s := range c.Socket {
		if _, err := newSocket(s, gate, zap.NewNop()); err != nil {
			problem(fmt.Sprintf("downstream.socket[%d]", i), err.Error())
		}
	}
}

// close gives back what openSources took when start will not be called.
func (s *sources) close() {
	if s == nil {
		return
	}
	for _, k := range s.sockets {
		closeUnused(k.Run)
	}
}

// start runs those that do not run yet.
func (s *sources) start(l *lifetime) {
	for _, b := range s.brokers {
		if b.running == nil {
			b.running = l.start("broker "+b.cfg.URL, b.Run)
		}
	}
	for _, e := range s.programs {
		if e.running == nil {
			e.running = l.start("program "+e.cfg.Name, e.Run)
		}
	}
	for _, k := range s.sockets {
		if k.running == nil {
			k.running = l.start("socket "+k.cfg.Name, k.Run)
		}
	}
}

// rearrange makes what the new configuration wants run in place of s: what did
// not change goes on, what changed is stopped first, because two of a kind cannot
// share a session, a serial port or an address. One that cannot be opened is an
// error and does not keep the others from running. Those that are new wait for
// start, which comes after the new routes: a broker's message without a route is
// gone.
func (s *sources) rearrange(c config.Downstream, gate *downstream.Gate, local *downstream.Local, log *zap.Logger) (next *sources, changed bool, err error) {
	next = &sources{}
	var errs []error
	for _, b := range s.brokers {
		if !contains(c.Broker, b.cfg) {
			b.running.stop()
			changed = true
		}
	}
	for _, e := range s.programs {
		if !contains(c.Exec, e.cfg) {
			e.running.stop()
			changed = true
		}
	}
	for _, k := range s.sockets {
		if !contains(c.Socket, k.cfg) {
			k.running.stop()
			changed = true
		}
	}
	for i, want := range c.Broker {
		next.brokers = appendKept(next.brokers, s.brokers, func(b *brokerSource) bool { return reflect.DeepEqual(b.cfg, want) },
			func() (*brokerSource, error) { return openBroker(i, want, gate, local, log) }, &changed, &errs)
	}
	for i, want := range c.Exec {
		next.programs = appendKept(next.programs, s.programs, func(e *execSource) bool { return reflect.DeepEqual(e.cfg, want) },
			func() (*execSource, error) { return openExec(i, want, gate, log) }, &changed, &errs)
	}
	for i, want := range c.Socket {
		next.sockets = appendKept(next.sockets, s.sockets, func(k *socketSource) bool { return reflect.DeepEqual(k.cfg, want) },
			func() (*socketSource, error) { return openSocket(i, want, gate, log) }, &changed, &errs)
	}
	return next, changed, errors.Join(errs...)
}

// appendKept adds the one that runs already, or a new one.
func appendKept[T any](all, old []*T, same func(*T) bool, open func() (*T, error), changed *bool, errs *[]error) []*T {
	for _, o := range old {
		if same(o) {
			return append(all, o)
		}
	}
	*changed = true
	one, err := open()
	if err != nil {
		*errs = append(*errs, err)
		return all
	}
	return append(all, one)
}

func contains[T any](all []T, one T) bool {
	for _, a := range all {
		if reflect.DeepEqual(a, one) {
			return true
		}
	}
	return false
}

// sourcesReport is what the sources say of themselves.
type sourcesReport struct {
	Brokers  []downstream.BrokerStats `json:"brokers,omitempty"`
	Programs []downstream.ExecStats   `json:"programs,omitempty"`
	Sockets  []downstream.SocketStats `json:"sockets,omitempty"`
}

func (s *sources) report() sourcesReport {
	var r sourcesReport
	for _, b := range s.brokers {
		r.Brokers = append(r.Brokers, b.Stats())
	}
	for _, e := range s.programs {
		r.Programs = append(r.Programs, e.Stats())
	}
	for _, k := range s.sockets {
		r.Sockets = append(r.Sockets, k.Stats())
	}
	return r
}

// firstFault is the first thing that is wrong with a source, or "".
func (r *sourcesReport) firstFault() string {
	for _, b := range r.Brokers {
		if b.Fault != "" {
			return "broker " + b.URL + ": " + b.Fault
		}
	}
	for _, e := range r.Programs {
		if e.Fault != "" {
			return "program " + e.Name + ": " + e.Fault
		}
	}
	return ""
}

// routeOf turns the file's words into the router's.
func routeOf(r config.Route) downstream.Route {
	out := downstream.Route{
		Name: r.Name, Match: r.Match, To: r.To, Properties: r.Properties, ContentType: r.ContentType,
		ContentEncoding: r.ContentEncoding, Output: r.Output, Priority: uint8(r.Priority), MaxAge: r.MaxAge,
		TypeAssumed: r.TypeAssumed, EncodingAssumed: r.EncodingAssumed,
		Filter: r.Filter, Set: r.Set, Transform: r.Transform, Gzip: r.Compress == "gzip",
		OnlyChanges: downstream.OnlyChanges{
			Deadband: r.OnlyChanges.Deadband, Deadbands: r.OnlyChanges.Deadbands, MinInterval: r.OnlyChanges.MinInterval, MaxInterval: r.OnlyChanges.MaxInterval,
		},
	}
	if r.Pack.MaxBytes > 0 {
		// The pack is compressed instead of what is in it.
		out.Pack = queue.Pack{MaxBytes: int(r.Pack.MaxBytes), MaxDelay: r.Pack.MaxDelay, Lines: r.Pack.Format == config.PackNDJSON, Gzip: out.Gzip}
		out.Gzip = false
	}
	switch r.OnError {
	case config.OnErrorDrop:
		out.OnError = downstream.ErrorDrop
	case config.OnErrorPass:
		out.OnError = downstream.ErrorPass
	}
	return out
}
