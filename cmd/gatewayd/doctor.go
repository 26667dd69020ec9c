package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"gatewayd/internal/certstore"
	"gatewayd/internal/config"
	"gatewayd/internal/queue"
)

// The steps of the doctor, in the order in which a cause hides the next. Those of
// the way to the hub may have further words between: see stepOf.
const (
	stepConfiguration = "configuration"
	stepFile          = "file"
	stepKey           = "key"
	stepChain         = "chain"
	stepDates         = "dates"
	stepClock         = "clock"
	stepServer        = "server certificate"
	stepTLS           = "tls"
	stepConnack       = "connack"
	stepThrottle      = "throttle"
	stepContest       = "contest"
	stepSession       = "session"
	stepQueue         = "queue"
)

// diagnosisSchema is raised when a field of diagnosis changes its meaning or goes.
const diagnosisSchema = 1

// diagnosis is what the doctor found: the answer of `gatewayd doctor --json`.
type diagnosis struct {
	Schema  int    `json:"schema"`
	Config  string `json:"config"`
	Running string `json:"gateway"` // running, stopped or unknown
	Healthy bool   `json:"healthy"`
	// Configuration is what keeps the file from being used at all.
	Configuration []string   `json:"configuration_problems,omitempty"`
	Next          string     `json:"next,omitempty"`
	Listeners     []string   `json:"listener_problems,omitempty"` // what a stopped gateway could not bind
	Identities    []*patient `json:"identities"`
}

// patient is one identity under examination.
type patient struct {
	Name   string   `json:"name"`
	HubID  string   `json:"hub_id"`
	Host   string   `json:"host"`
	Fault  *finding `json:"first_fault"` // nil: nothing is wrong
	Passed []passed `json:"passed"`
	Notes  []string `json:"notes,omitempty"` // worth knowing, not wrong

	done   chan struct{} // closed after the walk
	cfg    *config.Identity
	cert   *certificate
	chain  string          // what is odd about the chain: a fault only where the hub refuses
	status *identityReport // of the running gateway
	cred   *certstore.Credential
}

// passed is a step at which nothing is wrong.
type passed struct {
	Step   string  `json:"step"`
	Detail string  `json:"detail"`
	TookMS float64 `json:"took_ms,omitempty"`
}

// finding is what is wrong at a step, and what to do next.
type finding struct {
	Step string `json:"step"`
	Text string `json:"text"`
	Next string `json:"next"`
}

func (p *patient) ok(step, format string, args ...any) {
	p.Passed = append(p.Passed, passed{Step: step, Detail: fmt.Sprintf(format, args...)})
}

func (p *patient) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}

func (p *patient) fault(step, text, next string) bool {
	p.Fault = &finding{step, text, next}
	return false
}

// doctor examines the identities of one configuration.
type doctor struct {
	cfg      *config.Config
	file     string // as the user wrote it
	takeOver bool
	timeout  time.Duration
	stay     time.Duration
	clock    *certstore.Clock
	user     *serviceUser // who runs the gateway, when that is somebody else
	state    stateFolder
	report   *report // of the running gateway
	unknown  error   // why it cannot be told whether one runs
	trust    map[string]error
	closed   roads
	// stranger is who runs the gateway, when this is neither that user nor root: what
	// this user may not read says nothing.
	stranger string
}

func newDoctorCommand() *cobra.Command {
	d := doctor{}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor -c FILE [IDENTITY]",
		Short: "Name the first thing that is wrong with each identity, and what to do about it",
		Long: `Name the first thing that is wrong with each identity, or with one, and what to
do about it. The steps, in the order in which a cause hides the next:
configuration, file, key, chain, dates, clock, dns, proxy, tcp, server
certificate, tls, connack, throttle or contest, queue.

A running gateway is asked for what its sessions see; files, name, port, proxy
and TLS are tried beside it. Without a running gateway this command also
connects once as each identity and stays for two seconds. The hub keeps one
connection per identity: should another machine be connected as it, that one is
cut off for a moment. --take-over connects although the gateway runs.

Exit codes: 0 nothing is wrong, 1 an identity has a fault, 2 bad usage or a
configuration that the gateway would refuse.`,
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			progress := cmd.OutOrStdout()
			if asJSON {
				progress = io.Discard
			}
			found, err := d.examine(cmd.Context(), args, progress)
			if err == nil && asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(found)
			}
			switch {
			case err != nil:
				return err
			case len(found.Configuration) > 0:
				return &exitError{code: exitUsage}
			case !found.Healthy:
				return &exitError{code: exitRunning}
			}
			return nil
		},
	}
	addConfigFlag(cmd, &d.file)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&d.takeOver, "take-over", false, "connect as each identity even while the gateway runs, which cuts it off for a moment")
	cmd.Flags().DurationVar(&d.timeout, "timeout", 15*time.Second, "the longest wait for one step on the way to the hub")
	cmd.Flags().DurationVar(&d.stay, "stay", 2*time.Second, "how long to stay connected, to notice another client with the same identity")
	return cmd
}

// examine goes through everything and writes what it finds as it goes. An error is
// one of usage or of writing; what is wrong with the gateway is in the diagnosis.
func (d *doctor) examine(ctx context.Context, args []string, out io.Writer) (*diagnosis, error) {
	if d.file == "" {
		return nil, &exitError{exitUsage, errors.New("-c FILE is required: the configuration file")}
	}
	if d.timeout < 100*time.Millisecond || d.timeout > 10*time.Minute || d.stay < 0 || d.stay > 10*time.Minute {
		return nil, &exitError{exitUsage, errors.New("--timeout and --stay take durations up to 10m, --timeout at least 100ms")}
	}
	found := &diagnosis{Schema: diagnosisSchema, Config: d.file, Running: "unknown"}
	cfg, err := config.Load(d.file)
	if err != nil {
		found.Configuration = strings.Split(err.Error(), "\n")
		found.Next = "Mend the file; gatewayd check -c " + d.file + " says whether it can be used. A running gateway keeps the old configuration until then."
		return found, found.begin(out)
	}
	d.cfg = cfg
	chosen, err := d.choose(args)
	if err != nil {
		return nil, err
	}
	c := checker{cfg: cfg, file: d.file, out: io.Discard}
	c.local()
	for _, p := range c.problems {
		found.Configuration = append(found.Configuration, p.Error())
		found.Next = "Mend what the key names; the gateway does not start, and does not reload, with it."
	}
	d.prepare(ctx)
	found.Running = d.runningWord()
	if d.report == nil && d.unknown == nil {
		found.Listeners = takenAddresses(ctx, cfg)
	}
	d.certificates(chosen)
	err = found.begin(out)
	free := make(chan struct{}, atOnce)
	for _, p := range chosen {
		go func() {
			free <- struct{}{}
			d.walk(ctx, p)
			<-free
			close(p.done)
		}()
	}
	for _, p := range chosen {
		<-p.done
		if err == nil && ctx.Err() == nil {
			err = p.write(out)
		}
	}
	found.Identities = chosen
	found.Healthy = len(found.Configuration)+len(found.Listeners) == 0 && !slices.ContainsFunc(chosen, func(p *patient) bool { return p.Fault != nil })
	if err = errors.Join(err, ctx.Err()); err != nil {
		return nil, err
	}
	return found, found.end(out)
}

// choose is who is examined: one identity by name, or all.
func (d *doctor) choose(args []string) ([]*patient, error) {
	var chosen []*patient
	for i := range d.cfg.Identities {
		id := &d.cfg.Identities[i]
		if len(args) == 0 || args[0] == id.Name {
			chosen = append(chosen, &patient{Name: id.Name, HubID: id.HubID(), Host: id.HostName, cfg: id, done: make(chan struct{})})
		}
	}
	if len(chosen) == 0 {
		return nil, &exitError{exitUsage, fmt.Errorf("%s has no identity %q; it has %s", d.file, args[0], strings.Join(d.cfg.Names(), ", "))}
	}
	return chosen, nil
}

// startingFor is how long a gateway that holds the state folder may take until it
// answers.
const startingFor = 5 * time.Second

// prepare learns what concerns every identity: whether a gateway runs, its state
// folder, the clock.
func (d *doctor) prepare(ctx context.Context) {
	d.report, d.unknown = askReport(ctx, d.cfg)
	// One that is starting has its state folder before it can be asked.
	for end := time.Now().Add(min(startingFor, d.timeout)); d.report == nil && d.unknown == nil && time.Now().Before(end); {
		if held, err := queue.Locked(queueDir(d.cfg)); err != nil || !held {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
		d.report, d.unknown = askReport(ctx, d.cfg)
	}
	d.clock = certstore.OpenClock(certstore.ClockOptions{StateDir: d.cfg.StateDir, Build: readBuild().Built})
	d.user, d.stranger = findServiceUser(d.cfg.StateDir, d.report != nil)
	if d.report == nil && d.stranger == "" {
		d.state = lookAtState(ctx, d.cfg, d.user)
		if d.state.locked {
			d.unknown = errors.New("a process holds state_dir and does not answer at its control socket")
		}
	}
}

func (d *doctor) runningWord() string {
	switch {
	case d.report != nil:
		return "running"
	case d.unknown != nil:
		return "unknown"
	}
	return "stopped"
}

// walk takes the steps until one is at fault.
func (d *doctor) walk(ctx context.Context, p *patient) {
	for _, step := range []func(context.Context, *patient) bool{
		d.configuration, d.files, d.dates, d.clocks, d.seenByGateway, d.way, d.session, d.stored,
	} {
		if ctx.Err() != nil || !step(ctx, p) {
			break
		}
	}
	if f, s := p.Fault, p.status; f != nil && s != nil && s.Connected && s.Certificate.Current != nil && f.Step != stepThrottle && f.Step != stepQueue {
		p.note("the gateway is connected all the same, with the certificate that is valid until %s", s.Certificate.Current.NotAfter.UTC().Format(time.RFC3339))
	}
}

// begin writes what concerns every identity, end the sum of them.
func (f *diagnosis) begin(out io.Writer) error {
	_, err := fmt.Fprintf(out, "%s: the gateway is %s\n", f.Config, map[string]string{"running": "running and was asked", "stopped": "not running", "unknown": "perhaps running"}[f.Running])
	for _, line := range f.Configuration {
		fmt.Fprintf(out, "  FAULT  %s  %s\n", stepConfiguration, line)
	}
	for _, line := range f.Listeners {
		fmt.Fprintf(out, "  FAULT  listener  %s\n", line)
	}
	if f.Next != "" {
		fmt.Fprintf(out, "  next   %s\n", f.Next)
	}
	if len(f.Listeners) > 0 {
		fmt.Fprintln(out, "  next   See who has the address (ss -ltnp) and stop it, or choose another one: the gateway does not start.")
	}
	return err
}

func (f *diagnosis) end(out io.Writer) (err error) {
	faulty := 0
	for _, p := range f.Identities {
		if p.Fault != nil {
			faulty++
		}
	}
	switch {
	case f.Healthy:
		_, err = fmt.Fprintln(out, "\nnothing is wrong")
	case faulty > 0:
		_, err = fmt.Fprintf(out, "\nfaulty identities: %d of %d\n", faulty, len(f.Identities))
	}
	return err
}

func (p *patient) write(out io.Writer) error {
	fmt.Fprintf(out, "\n%s (%s at %s)\n", p.Name, p.HubID, p.Host)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, s := range p.Passed {
		fmt.Fprintf(w, "  ok\t%s\t%s\n", s.Step, visible(s.Detail))
	}
	if f := p.Fault; f != nil {
		fmt.Fprintf(w, "  FAULT\t%s\t%s\n", f.Step, visible(f.Text))
		if f.Next != "" {
			fmt.Fprintf(w, "  next\t\t%s\n", visible(f.Next))
		}
	}
	for _, n := range p.Notes {
		fmt.Fprintf(w, "  note\t\t%s\n", visible(n))
	}
	return w.Flush()
}

// visible keeps what others wrote, such as a server into its certificate, from
// steering a terminal.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
